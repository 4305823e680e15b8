package plugin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/cli-runtime/pkg/printers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/access"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/api/v1alpha1"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/cli"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/drain"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodeswitch"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/preflight"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/render"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/rollout"
)

// The values of --dry-run that this command knows; kubectl's "server" cannot be had, since a node is no API object.
const (
	dryRunNone   = "none"
	dryRunClient = "client"
)

// runOptions are what switch and rollback have in common.
type runOptions struct {
	factory   *cli.Factory
	selection cli.NodeSelection
	dryRun    string
	yes       bool
	wait      bool
	strict    bool
	rollout   nodeswitch.Options
	pull      string
	limits    rollout.Limits
	// ignore are IDs of checks that are not run.
	ignore []string
	output string

	// flags are those that the user set, and selected the nodes that were chosen, for the command line that resumes the run after a failure.
	flags    []string
	selected []string
	terminal bool
	client   kubernetes.Interface
	config   *rest.Config
	printer  printers.ResourcePrinter // nil prints for people
	results  []v1alpha1.NodeResult
	// rolloutName is the name of the record, if the command makes one.
	rolloutName string
}

// move is what a command does to nodes, and how it says so.
type move struct {
	// kind is that of the object that -o prints.
	kind string
	// name is the command's, question how its question begins, target the runtime it is about, done how its result begins.
	name, question, target, done string

	preflight func(c *preflight.Checker, ctx context.Context, nodes []corev1.Node, alone bool) ([]preflight.Finding, error)
	plan      func(options nodeswitch.Options, finding preflight.Finding) []string
	do        func(r *nodeswitch.Switcher, ctx context.Context, node string) (*nodeswitch.Report, error)
	// assesses: the checks of plan are run on the nodes that pass the preflight, and what blocks refuses.
	assesses bool
	// would says what a dry run stands for; wayBack is the closing report's sentence on how to undo it, if there is one.
	would   func(finding preflight.Finding) string
	wayBack func(node, run string) string
}

func (o *runOptions) addSharedFlags(flags *pflag.FlagSet) {
	flags.StringVar(&o.dryRun, "dry-run", dryRunNone, `"none" or "client": client prints the steps and changes nothing`)
	flags.Lookup("dry-run").NoOptDefVal = dryRunClient
	flags.BoolVarP(&o.yes, "yes", "y", false, "Do not ask; needed where there is no terminal")
	flags.BoolVar(&o.wait, "wait", false, "If another run has a node, wait until it ends, for at most --timeout")
	flags.BoolVar(&o.strict, "strict", false, "Refuse all nodes if one of those that match cannot be moved; by default such a node is skipped. A node that is named always refuses")
	o.addLimitFlags(flags)
	addAgentFlags(flags, &o.rollout, &o.pull)
	flags.StringVar(&o.rollout.CanaryImage, "canary-image", "", "The canary pod's image, which holds the agent, too (default the agent's)")
	flags.DurationVar(&o.rollout.Soak, "soak", 10*time.Second, "How long to watch a node after it is back in service")

	// kubectl drain's, with its names and meanings.
	d := &o.rollout.Drain
	var ignored bool
	addConsentFlags(flags, d)
	flags.IntVar(&d.GracePeriodSeconds, "grace-period", drain.PodGrace, "Seconds given to each pod to terminate; negative: as the pod says")
	flags.BoolVar(&ignored, "ignore-daemonsets", true, "Accepted as kubectl drain's; DaemonSet pods always stay")
	flags.DurationVar(&d.Timeout, "timeout", 10*time.Minute, "How long the drain may take before it gives up and uncordons; zero means for ever")
	flags.BoolVar(&d.DisableEviction, "disable-eviction", false, "Delete pods instead of evicting them; this bypasses PodDisruptionBudgets, use with caution")
	flags.StringVar(&d.PodSelector, "pod-selector", "", "Only drain pods with these labels")
	flags.IntVar(&d.SkipWaitForDeleteTimeoutSeconds, "skip-wait-for-delete-timeout", 0, "Do not wait for pods that have been terminating for more than this many seconds; zero waits")
	flags.Int64Var(&d.ChunkSize, "chunk-size", cli.ListChunk, "How many objects one request lists; zero means all at once")
}

// addAgentFlags adds the flags on the agent's image.
func addAgentFlags(flags *pflag.FlagSet, o *nodeswitch.Options, pull *string) {
	flags.StringVar(&o.Image, "image", "", "The agent's image (default "+cli.AgentRepository+":VERSION, with the digest of that release)")
	flags.StringVar(pull, "image-pull-policy", string(corev1.PullIfNotPresent), "When to pull the agent's image: Always, IfNotPresent or Never")
	flags.StringSliceVar(&o.Pod.PullSecrets, "image-pull-secret", nil, "A Secret in namespace "+nodejob.Namespace+" to pull the agent's image with; may be repeated")
	flags.StringVar(&o.Pod.ServiceAccount, "service-account", "", "The service account, in namespace "+nodejob.Namespace+", of the agent's pods and the canary; they get no token of it (default the namespace's)")
	flags.StringVar(&o.Pod.PriorityClass, "priority-class", "", "The priority class of the agent's pods (default system-node-critical)")
}

// validateAgent judges the flags of addAgentFlags.
func validateAgent(o nodeswitch.Options) error {
	switch {
	case o.Image == "":
		return errors.New("this build of the plugin is no release and has no agent image of its own: give one with --image")
	case !slices.Contains([]corev1.PullPolicy{corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever}, o.PullPolicy):
		return fmt.Errorf("--image-pull-policy=%q: use Always, IfNotPresent or Never", o.PullPolicy)
	}
	for flag, names := range map[string][]string{
		"image-pull-secret": o.Pod.PullSecrets, "service-account": {o.Pod.ServiceAccount}, "priority-class": {o.Pod.PriorityClass},
	} {
		for _, name := range names {
			if wrong := validation.IsDNS1123Subdomain(name); name != "" && len(wrong) > 0 {
				return fmt.Errorf("--%s=%q: %s", flag, name, strings.Join(wrong, "; "))
			}
		}
	}
	return nil
}

// addHostFlags adds the flags on what a switch does to a host, and leaves.
func addHostFlags(flags *pflag.FlagSet, o *nodeswitch.Options) {
	flags.BoolVar(&o.KeepDocker, "keep-docker", false, "Leave Docker running, for containers that Kubernetes does not manage")
	flags.StringVar(&o.ContainerdArchive, "containerd-archive", "", "Where a node needs containerd or a newer one: the path, on the node itself, of upstream's containerd-VERSION-linux-ARCH.tar.gz; it is checked against PATH.sha256 or PATH.sha256sum if there is one")
	flags.Var((*digestValue)(&o.ContainerdArchiveSHA256), "containerd-archive-sha256", "The SHA-256 that the file of --containerd-archive has to have; without it, whoever can write the file decides what the node runs")
	flags.StringVar(&o.ImageSet, "images", protocol.ImagesUsed, "Which images to bring from Docker: used (by pods, or by workloads that may come), all, or none")
	flags.BoolVar(&o.VerifyImages, "verify-images", false, "Compare the content of every image that was brought with its digest; this reads all of it, while the node serves")
}

// validateHost judges the flags of addHostFlags.
func validateHost(o nodeswitch.Options) error {
	if o.ContainerdArchive != "" && !path.IsAbs(o.ContainerdArchive) {
		return fmt.Errorf("--containerd-archive=%s: give the absolute path of a file on the node", o.ContainerdArchive)
	}
	if o.ContainerdArchiveSHA256 != "" && o.ContainerdArchive == "" {
		return errors.New("--containerd-archive-sha256 is about the file of --containerd-archive: give both")
	}
	if !slices.Contains(protocol.ImageSets(), o.ImageSet) {
		return fmt.Errorf("--images=%s: use one of %s", o.ImageSet, strings.Join(protocol.ImageSets(), ", "))
	}
	return nil
}

// addConsentFlags adds the flags that accept what a drain takes away for good.
func addConsentFlags(flags *pflag.FlagSet, d *drain.Options) {
	flags.BoolVar(&d.Force, "force", false, "Continue even if there are pods that do not declare a controller, or if it is the cluster's only node")
	flags.BoolVar(&d.DeleteEmptyDirData, "delete-emptydir-data", false, "Continue even if there are pods using emptyDir, whose data is deleted when the node is drained")
}

// agentFlags are the flags that the user set on the agent's pods. A rollback needs them, too: its agent may come from the same registry alone.
func (o *runOptions) agentFlags() []string {
	onAgent := pflag.NewFlagSet("", pflag.ContinueOnError)
	addAgentFlags(onAgent, &nodeswitch.Options{}, new(string))
	return slices.DeleteFunc(slices.Clone(o.flags), func(flag string) bool {
		name, _, _ := strings.Cut(strings.TrimPrefix(flag, "--"), "=")
		return onAgent.Lookup(name) == nil && name != "canary-image"
	})
}

// complete reads arguments, flags, streams and kubeconfig.
func (o *runOptions) complete(cmd *cobra.Command, args []string) error {
	o.selection.Names = args
	o.rollout.PullPolicy = corev1.PullPolicy(o.pull)
	o.rollout.Image = cmp.Or(o.rollout.Image, o.factory.AgentImage())
	o.selected = slices.Clone(args)
	cmd.Flags().Visit(func(flag *pflag.Flag) {
		if flag.Name == "selector" || flag.Name == "all" {
			o.selected = append(o.selected, "--"+flag.Name+"="+flag.Value.String())
		}
		if cmd.InheritedFlags().Lookup(flag.Name) == nil && !slices.Contains([]string{"selector", "all", "dry-run", "output"}, flag.Name) {
			value := flag.Value.String()
			if list, ok := flag.Value.(pflag.SliceValue); ok {
				value = strings.Join(list.GetSlice(), ",")
			}
			o.flags = append(o.flags, "--"+flag.Name+"="+value)
		}
	})
	if err := o.completeOutput(); err != nil {
		return err
	}
	o.terminal = o.factory.HasTerminal()
	var err error
	if o.config, err = o.factory.RESTConfig(); err != nil {
		return err
	}
	o.client, err = o.factory.Clientset()
	return err
}

// validate judges the flags.
func (o *runOptions) validate() error {
	d := o.rollout.Drain
	switch {
	case o.dryRun == "server":
		return errors.New(`--dry-run=server: a host has no dry run; use --dry-run=client`)
	case o.dryRun != dryRunNone && o.dryRun != dryRunClient:
		return fmt.Errorf(`--dry-run=%q: use "none" or "client"`, o.dryRun)
	case d.Timeout < 0 || o.rollout.Soak < 0 || d.SkipWaitForDeleteTimeoutSeconds < 0 || d.ChunkSize < 0:
		return errors.New("--timeout, --soak, --skip-wait-for-delete-timeout and --chunk-size cannot be negative")
	}
	if err := o.validateLimits(); err != nil {
		return err
	}
	if err := validateAgent(o.rollout); err != nil {
		return err
	}
	if _, err := labels.Parse(d.PodSelector); err != nil {
		return fmt.Errorf("--pod-selector %q: %w", d.PodSelector, err)
	}
	if err := o.selection.Validate(); err != nil {
		return err
	}
	if o.dryRun == dryRunNone && !o.yes && !o.terminal {
		return errors.New("there is no terminal to ask on: use --yes to skip the question, or --dry-run=client to see what would be done")
	}
	return nil
}

// run moves the nodes, and says what became of them.
func (o *runOptions) run(ctx context.Context, m move) error {
	err := o.runNodes(ctx, m)
	if printErr := o.printResults(m, err); err == nil {
		err = printErr
	}
	return err
}

func (o *runOptions) runNodes(ctx context.Context, m move) error {
	errOut := o.factory.Streams.ErrOut
	if err := o.factory.CheckServer(ctx, o.client); err != nil {
		return err
	}
	nodes, err := cli.FindSomeNodes(ctx, o.factory, o.client, o.selection)
	if err != nil {
		return err
	}
	progress := &lazyProgress{start: func() *render.Progress {
		return render.NewProgress(errOut, render.DetectStyle(errOut, os.Getenv), o.factory.Clock)
	}}
	defer progress.Close()
	r := nodeswitch.New(nodeswitch.Config{
		Client: o.client, REST: o.config, Clock: o.factory.Clock, Observer: progress, Options: o.rollout, Holder: holder(),
	})
	checked, err := o.preflight(ctx, m, r, nodes)
	progress.Close()
	if err != nil {
		return err
	}
	var todo []preflight.Finding
	unfit := 0
	for _, finding := range checked.findings {
		text := finding.Reason
		switch {
		case finding.Unfit:
			unfit++
			text = "skipped: " + text
		case finding.Verdict != preflight.Skip:
			todo = append(todo, finding)
			continue
		}
		result := v1alpha1.NodeResult{Node: finding.Node, Result: v1alpha1.ResultSkipped, Reason: finding.Reason}
		if err := o.conclude(result, fmt.Sprintf("node/%s %s\n", finding.Node, text)); err != nil {
			return err
		}
	}
	if unfit > 0 && len(todo) == 0 {
		return cli.Exitf(cli.ExitRefused, "none of the nodes can be moved to %s; %d of them skipped", m.target, unfit).WithHint("nothing was changed")
	}
	if o.dryRun == dryRunClient {
		return o.printPlan(m, todo)
	}
	if len(todo) == 0 {
		return nil
	}
	if !o.yes {
		if err := o.ask(ctx, m, todo); err != nil {
			return err
		}
	}
	return o.moveNodes(ctx, m, r, progress, checked)
}

// awaitOthers waits until no other run has any of the nodes, and reads them again: that run has changed them.
func (o *runOptions) awaitOthers(ctx context.Context, m move, r *nodeswitch.Switcher, nodes []corev1.Node) ([]corev1.Node, error) {
	list := make([]string, len(nodes))
	for i := range nodes {
		list[i] = nodes[i].Name
	}
	if err := r.AwaitClaims(ctx, list); err != nil {
		var failed *nodeswitch.Error
		if errors.As(err, &failed) {
			return nil, o.exitError(m.name, failed.Node, err)
		}
		return nil, o.factory.Explain("wait for", "other runs", "", err)
	}
	return cli.FindSomeNodes(ctx, o.factory, o.client, o.selection)
}

// checked are nodes that passed the preflight, or are skipped, in the order in which they start. Each has a finding.
type checked struct {
	nodes    []corev1.Node
	findings []preflight.Finding
	// alone: the cluster has no other node.
	alone bool
	at    time.Time
}

// preflight checks permissions and nodes, with --wait once no other run has them. What is wrong with any node ends in one error for all.
func (o *runOptions) preflight(ctx context.Context, m move, r *nodeswitch.Switcher, nodes []corev1.Node) (*checked, error) {
	permissions := access.Checker{Client: o.client}
	if err := permissions.CheckSwitch(ctx, o.rollout.Drain); err != nil {
		return nil, o.factory.PermissionError(err)
	}
	missing, err := permissions.MissingOptional(ctx, m.name)
	if err != nil {
		return nil, o.factory.Explain("check", "permissions", "", err)
	}
	o.factory.WarnMissing(m.name, missing)
	if o.wait {
		var err error
		if nodes, err = o.awaitOthers(ctx, m, r, nodes); err != nil {
			return nil, err
		}
	}
	some, err := o.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{Limit: 2})
	if err != nil {
		return nil, o.factory.Explain("list", "nodes", "", err)
	}
	rollout.Order(nodes)
	c := &checked{nodes: nodes, alone: len(some.Items) < 2, at: o.factory.Clock.Now()}
	findings, err := m.preflight(r.Preflight(), ctx, nodes, c.alone)
	if err != nil {
		return nil, o.factory.Explain("check", "nodes", "", err)
	}
	var refused []string
	for _, finding := range findings {
		if finding.Verdict == preflight.Refuse && !(finding.Unfit && o.skips()) {
			refused = append(refused, fmt.Sprintf("node %s: %s", finding.Node, finding.Reason))
		}
	}
	if len(refused) > 0 {
		return nil, cli.Exitf(cli.ExitRefused, "%s", strings.Join(refused, "\n")).WithHint("nothing was changed")
	}
	if m.assesses {
		err = o.assess(ctx, nodes, findings)
	}
	c.findings = findings
	return c, err
}

// skips reports whether a node that cannot be moved is left out: the user chose nodes by a selector and did not ask for all or none.
func (o *runOptions) skips() bool { return len(o.selection.Names) == 0 && !o.strict }

// printPlan is the dry run.
func (o *runOptions) printPlan(m move, todo []preflight.Finding) error {
	for _, finding := range todo {
		var text strings.Builder
		fmt.Fprintf(&text, "node/%s would be %s (client dry run)\n", finding.Node, m.would(finding))
		steps := m.plan(o.rollout, finding)
		for i, step := range steps {
			fmt.Fprintf(&text, "  %d. %s\n", i+1, step)
		}
		result := v1alpha1.NodeResult{Node: finding.Node, Result: v1alpha1.ResultPlanned, From: finding.Runtime, Plan: steps}
		if err := o.conclude(result, text.String()); err != nil {
			return err
		}
	}
	return nil
}

// ask asks on the terminal.
func (o *runOptions) ask(ctx context.Context, m move, todo []preflight.Finding) error {
	w := o.factory.Streams.ErrOut
	for _, finding := range todo {
		fmt.Fprintf(w, "node %s: %s to %s; %d pods to evict\n", finding.Node, finding.Runtime, m.target, len(finding.Evict))
	}
	if len(todo) > 1 {
		fmt.Fprintf(w, "at most %s of the selected nodes unavailable at a time, the first one alone\n", &o.limits.MaxUnavailable)
	}
	fmt.Fprintf(w, "%s %s? [y/N] ", m.question, names(todo))
	return o.factory.Confirm(ctx)
}

func names(findings []preflight.Finding) string {
	list := make([]string, len(findings))
	for i, finding := range findings {
		list[i] = finding.Node
	}
	return strings.Join(list, ", ")
}

// exitError gives what failed its exit code and the command that resumes the run.
func (o *runOptions) exitError(command, node string, err error) error {
	var failed *nodeswitch.Error
	if !errors.As(err, &failed) {
		return err
	}
	exit := &cli.ExitError{Err: err, Detail: failed.Detail, Hint: failed.Hint}
	switch failed.Outcome {
	case nodeswitch.OutcomeRefused:
		exit.Code = cli.ExitRefused
	case nodeswitch.OutcomeRolledBack:
		exit.Code = cli.ExitRolledBack
	case nodeswitch.OutcomeStuck:
		exit.Code = cli.ExitStuck
	case nodeswitch.OutcomeTimeout:
		exit.Code = cli.ExitTimeout
	case nodeswitch.OutcomeInterrupted, nodeswitch.OutcomeFailed:
		// The signal's code, or the general one.
	}
	if failed.Resumable {
		again := fmt.Sprintf("`%s` resumes the run", o.factory.Command(append([]string{command, node}, o.flags...)...))
		exit.Hint = strings.TrimSuffix(again+"; "+exit.Hint, "; ") // the node's own words, if there are any, come last
	}
	return exit
}

// holder names this run for others: who, where, and a suffix that makes it unique.
func holder() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown-host"
	}
	name := cmp.Or(os.Getenv("USER"), os.Getenv("USERNAME"))
	if who, err := user.Current(); name == "" && err == nil {
		name = who.Username
	}
	return fmt.Sprintf("%s@%s/%d-%s", cmp.Or(name, "unknown"), host, os.Getpid(), rand.String(5))
}
