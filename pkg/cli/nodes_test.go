package cli

import (
	"errors"
	"slices"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cli-runtime/pkg/genericiooptions"
)

// TestListChunks: a list that expires between two chunks is started again in one piece, and nothing is there twice.
func TestListChunks(t *testing.T) {
	var asked []metav1.ListOptions
	list := func(options metav1.ListOptions) ([]string, metav1.ListMeta, error) {
		asked = append(asked, options)
		switch {
		case options.Continue != "":
			return nil, metav1.ListMeta{}, apierrors.NewResourceExpired("too old")
		case options.Limit == 0:
			return []string{"a", "b", "c"}, metav1.ListMeta{ResourceVersion: "2"}, nil
		default:
			return []string{"a", "b"}, metav1.ListMeta{ResourceVersion: "1", Continue: "more"}, nil
		}
	}
	factory := NewFactory(genericiooptions.NewTestIOStreamsDiscard(), "test")
	got, version, err := ListChunks(t.Context(), factory, "pods", metav1.ListOptions{FieldSelector: "f"}, list)
	if err != nil || version != "2" || !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Errorf("%v, version %s, %v", got, version, err)
	}
	if last := asked[len(asked)-1]; len(asked) != 3 || last.FieldSelector != "f" {
		t.Errorf("asked %+v", asked)
	}
	cause := errors.New("cause")
	if _, _, err := ListChunks(t.Context(), factory, "pods", metav1.ListOptions{}, func(metav1.ListOptions) ([]string, metav1.ListMeta, error) {
		return nil, metav1.ListMeta{}, cause
	}); !errors.Is(err, cause) {
		t.Errorf("error %v", err)
	}
}
