package nodestate

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestKubeadmEndpoint(t *testing.T) {
	for endpoint, want := range map[string]string{
		"":                                       "unix:///var/run/containerd/containerd.sock",
		"unix:///run/containerd/containerd.sock": "unix:///var/run/containerd/containerd.sock",
		"/run/containerd/containerd.sock":        "unix:///var/run/containerd/containerd.sock",
		"unix:///var/run/containerd/c.sock":      "unix:///var/run/containerd/c.sock",
		"unix:///opt/containerd/containerd.sock": "unix:///opt/containerd/containerd.sock",
	} {
		if got := kubeadmEndpoint(endpoint); got != want {
			t.Errorf("%q: %q, want %q", endpoint, got, want)
		}
	}
}

// TestPatch: what is removed is null, and the cordon is only named where it changes.
func TestPatch(t *testing.T) {
	yes, no := true, false
	for want, patch := range map[string]func() ([]byte, error){
		`{"metadata":{"annotations":{"a":"1","b":null}}}`:                                     func() ([]byte, error) { return nodePatch(Set{"a": "1", "b": ""}, nil, "") },
		`{"metadata":{"annotations":{},"resourceVersion":"7"},"spec":{"unschedulable":true}}`: func() ([]byte, error) { return nodePatch(nil, &yes, "7") },
		`{"metadata":{"annotations":{}},"spec":{"unschedulable":null}}`:                       func() ([]byte, error) { return nodePatch(nil, &no, "") },
	} {
		if got, err := patch(); err != nil || string(got) != want {
			t.Errorf("got %s, want %s, error %v", got, want, err)
		}
	}
}

// TestProtect: an annotation that was there before is not taken away in the end, also after two cordons.
func TestProtect(t *testing.T) {
	theirs := AutoscalerAnnotations()[0]
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{theirs: "true"}}}
	apply := func(set Set) {
		for key, value := range set {
			if value == "" {
				delete(node.Annotations, key)
			} else {
				node.Annotations[key] = value
			}
		}
	}
	for range 2 {
		set := Set{}
		protect(node, set)
		apply(set)
	}
	set := Set{}
	unprotect(node, set)
	apply(set)
	if len(node.Annotations) != 1 || node.Annotations[theirs] != "true" {
		t.Errorf("got %v, want %s alone", node.Annotations, theirs)
	}
}

// TestReadIsBounded: a node writes its own annotations.
func TestReadIsBounded(t *testing.T) {
	long := strings.Repeat("a\x1b,", 1<<16)
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{
		AnnotationPhase: long, AnnotationFrom: long, AnnotationTo: long, AnnotationRun: "../" + long, AnnotationMessage: long, AnnotationCRISocket: long,
		AnnotationAgentImage: long, AnnotationFailedBefore: long,
	}}}
	info := Read(node)
	text := fmt.Sprintf("%+v", info)
	if len(text) > 5000 || strings.Contains(text, "\x1b") || info.Run != "" || !info.BadRun || len(info.FailedBefore) > maxNames {
		t.Errorf("got %d bytes: %.2000q", len(text), text)
	}
}

// TestOnlyHere: no other package of the plugin writes a Node, or names an annotation in one.
func TestOnlyHere(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=Dir,ImportPath,GoFiles", "../...").Output()
	if err != nil {
		t.Fatal(err)
	}
	for decoder := json.NewDecoder(strings.NewReader(string(out))); decoder.More(); {
		var p struct {
			Dir, ImportPath string
			GoFiles         []string
		}
		if err := decoder.Decode(&p); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(p.ImportPath, "/nodestate") || strings.Contains(p.ImportPath, "/agent") {
			continue
		}
		for _, file := range p.GoFiles {
			source, err := os.ReadFile(p.Dir + "/" + file)
			if err != nil {
				t.Fatal(err)
			}
			for _, bad := range []string{"Nodes().Patch(", "Nodes().Update(", "node.Annotations[nodestate.", "Annotations[nodestate.AnnotationPhase"} {
				if strings.Contains(string(source), bad) {
					t.Errorf("%s/%s: %s", p.ImportPath, file, bad)
				}
			}
		}
	}
}
