package cli

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/metadata"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// CompletionTimeout is as long as somebody waits who pressed Tab.
const CompletionTimeout = 3 * time.Second

// CompleteNodes completes node names that are not among the arguments yet. It asks for their metadata only, and answers
// nothing when the server does not answer in time.
func CompleteNodes(f *Factory) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
		config, err := f.RESTConfig()
		if err != nil {
			cobra.CompDebugln(err.Error(), false)
			return nil, cobra.ShellCompDirectiveError
		}
		client, err := metadata.NewForConfig(config)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), CompletionTimeout)
		defer cancel()
		options := metav1.ListOptions{Limit: ListChunk}
		var names []cobra.Completion
		for {
			list, err := client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "nodes"}).List(ctx, options)
			if err != nil {
				cobra.CompDebugln(err.Error(), false)
				break
			}
			for i := range list.Items {
				if name := list.Items[i].Name; strings.HasPrefix(name, toComplete) && !slices.Contains(args, name) {
					names = append(names, name)
				}
			}
			if options.Continue = list.Continue; options.Continue == "" {
				break
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// RegisterKubeconfigCompletions completes --context, --cluster and --user from the kubeconfig, and --namespace with nothing.
func RegisterKubeconfigCompletions(root *cobra.Command, f *Factory) {
	fromConfig := func(names func(clientcmdapi.Config) []string) cobra.CompletionFunc {
		return func(_ *cobra.Command, _ []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
			config, err := f.Flags.ToRawKubeConfigLoader().RawConfig()
			if err != nil {
				return nil, cobra.ShellCompDirectiveError
			}
			matching := slices.DeleteFunc(names(config), func(name string) bool { return !strings.HasPrefix(name, toComplete) })
			slices.Sort(matching)
			return matching, cobra.ShellCompDirectiveNoFileComp
		}
	}
	for flag, complete := range map[string]cobra.CompletionFunc{
		"context": fromConfig(func(c clientcmdapi.Config) []string { return slices.Collect(maps.Keys(c.Contexts)) }),
		"cluster": fromConfig(func(c clientcmdapi.Config) []string { return slices.Collect(maps.Keys(c.Clusters)) }),
		"user":    fromConfig(func(c clientcmdapi.Config) []string { return slices.Collect(maps.Keys(c.AuthInfos)) }),
	} {
		// It fails only for a flag that does not exist, which every test of completion would show.
		if err := root.RegisterFlagCompletionFunc(flag, complete); err != nil {
			cobra.CompDebugln(err.Error(), false)
		}
	}
}
