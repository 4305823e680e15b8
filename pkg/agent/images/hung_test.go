package images_test

import (
	"context"
	"testing"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/images"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/agenttest"
)

// hanging is a Docker at whose first answer containerd hangs.
type hanging struct {
	*agenttest.Docker
	hang func() error
}

func (d hanging) Image(ctx context.Context, ref string) (docker.Image, error) {
	if err := d.hang(); err != nil {
		return docker.Image{}, err
	}
	return d.Docker.Image(ctx, ref)
}

// TestContainerdHangs: what brings or verifies images ends soon after its context, although containerd says nothing any more.
func TestContainerdHangs(t *testing.T) {
	const patience = time.Second
	for _, release := range agenttest.Releases(t) {
		for name, do := range map[string]func(context.Context, images.Source, node) error{
			"import": func(ctx context.Context, d images.Source, n node) error {
				_, err := images.Import(ctx, d, n.client, []string{"app:1"}, nil)
				return err
			},
			"verify": func(ctx context.Context, d images.Source, n node) error {
				_, err := images.VerifyShared(ctx, d, n.client, "moby", []string{"app:1"}, func(int64, int64, string) {})
				return err
			},
		} {
			t.Run(release.Name+"/"+name, func(t *testing.T) {
				t.Parallel()
				n, d := start(t, release), &agenttest.Docker{}
				d.Add(t, agenttest.OCI, []string{"app:1"}, nil, map[string][]byte{"a": []byte("one")})
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				source := hanging{d, func() error {
					err := n.daemon.Hang()
					<-ctx.Done()
					return err
				}}
				ended := make(chan error, 1)
				go func() { ended <- do(ctx, source, n) }()
				select {
				case err := <-ended:
					if err == nil {
						t.Error("it succeeded with a containerd that hangs")
					}
				case <-time.After(patience + time.Minute):
					t.Error("it still waits a minute after its context has ended")
				}
			})
		}
	}
}
