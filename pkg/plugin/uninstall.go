package plugin

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/metadata"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/access"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/cli"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/uninstall"
)

// UninstallOptions are `kubectl runtime uninstall`.
type UninstallOptions struct {
	factory *cli.Factory
	dryRun  string
	yes     bool
}

const uninstallLong = `Lists what kubectl runtime made in the cluster and removes it after a question: its annotations on nodes, what the files
docs/*.yaml made (roles, bindings, policies), and its namespace with all in it, the records of rollouts among them. Where that namespace is
somebody else's, or has somebody else's pods, it stays, and only what is kubectl runtime's in it is removed. It refuses while a run is open on
any node, or a rollout has a driver.

Nothing on the nodes themselves is changed. Without the annotations of a switched node, the cluster no longer knows the runtime that it came from:
then only the agent on the node rolls it back, with /var/lib/kubectl-runtime/bin/runtime-agent rollback.`

const uninstallExample = `  # List what would be removed
  kubectl runtime uninstall --dry-run=client

  # Remove it without a question
  kubectl runtime uninstall --yes`

// NewUninstallCommand is `kubectl runtime uninstall`.
func NewUninstallCommand(f *cli.Factory) *cobra.Command {
	o := &UninstallOptions{factory: f}
	cmd := &cobra.Command{
		Use:                   "uninstall",
		Short:                 "Remove what kubectl runtime made in the cluster",
		Long:                  uninstallLong,
		Example:               uninstallExample,
		DisableFlagsInUseLine: true,
		Args:                  cobra.NoArgs,
		ValidArgsFunction:     cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.Validate(); err != nil {
				return err
			}
			return o.Run(cmd.Context())
		},
	}
	cmd.Flags().StringVar(&o.dryRun, "dry-run", dryRunNone, `"none" or "client": client lists what would be removed and changes nothing`)
	cmd.Flags().Lookup("dry-run").NoOptDefVal = dryRunClient
	cmd.Flags().BoolVarP(&o.yes, "yes", "y", false, "Do not ask; needed where there is no terminal")
	return cmd
}

// Validate judges the flags.
func (o *UninstallOptions) Validate() error {
	if o.dryRun != dryRunNone && o.dryRun != dryRunClient {
		return fmt.Errorf("--dry-run=%s: use none or client", o.dryRun)
	}
	if o.dryRun == dryRunNone && !o.yes && !o.factory.HasTerminal() {
		return errors.New("there is no terminal to ask on: use --yes to skip the question, or --dry-run=client to see what would be removed")
	}
	return nil
}

// Run lists, asks and removes.
func (o *UninstallOptions) Run(ctx context.Context) error {
	client, err := o.factory.Clientset()
	if err != nil {
		return err
	}
	config, err := o.factory.RESTConfig()
	if err != nil {
		return err
	}
	objects, err := metadata.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	errOut := o.factory.Streams.ErrOut
	permissions := access.Checker{Client: client}
	if err := permissions.CheckUninstall(ctx); err != nil {
		return o.factory.PermissionError(err)
	}
	missing, err := permissions.MissingOptional(ctx, "uninstall")
	if err != nil {
		return o.factory.Explain("check", "permissions", "", err)
	}
	o.factory.WarnMissing("uninstall", missing)
	found, err := (uninstall.Finder{Client: client, Metadata: objects, Clock: o.factory.Clock, Holder: holder()}).Find(ctx)
	if err != nil {
		return o.factory.Explain("look for", "what is installed", "", err)
	}
	for _, note := range found.Notes {
		fmt.Fprintf(errOut, "note: %s\n", note)
	}
	if len(found.Open) > 0 {
		return cli.Exitf(cli.ExitRefused, "runs are open: %s", strings.Join(found.Open, "; ")).
			WithHint("end each with `kubectl runtime switch NODE` or `kubectl runtime rollback NODE` first; nothing was changed")
	}
	if len(found.Objects) == 0 {
		fmt.Fprintln(errOut, "there is nothing to remove")
		return nil
	}
	if o.dryRun == dryRunClient {
		o.list(found.Objects, "would be removed (dry run)")
		return nil
	}
	if !o.yes {
		for _, object := range found.Objects {
			fmt.Fprintln(errOut, strings.TrimSpace(object.Name+" "+object.What))
		}
		fmt.Fprintf(errOut, "Remove these %d? [y/N] ", len(found.Objects))
		if err := o.factory.Confirm(ctx); err != nil {
			return err
		}
	}
	err = uninstall.Remove(ctx, found, func(object uninstall.Object) { o.list([]uninstall.Object{object}, "removed") })
	if apierrors.IsForbidden(err) {
		return cli.Exitf(cli.ExitGeneral, "%w", err).
			WithHint("an administrator has to remove these; who may uninstall by role kubectl-runtime-uninstall alone cannot remove the last object of that role")
	}
	if err != nil {
		return o.factory.Explain("remove", "what is installed", "", err)
	}
	return nil
}

func (o *UninstallOptions) list(objects []uninstall.Object, done string) {
	for _, object := range objects {
		fmt.Fprintln(o.factory.Streams.Out, strings.Join(strings.Fields(object.Name+" "+object.What+" "+done), " "))
	}
}
