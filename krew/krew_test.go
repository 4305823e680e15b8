// Package krew holds the manifest template for krew's plugin index; its test compares it with what a release builds.
package krew

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/template"

	"sigs.k8s.io/yaml"
)

const tag = "v1.2.3"

// manifest is what this test reads of krew's Plugin (sigs.k8s.io/krew/pkg/index/types.go).
type manifest struct {
	APIVersion string
	Kind       string
	Metadata   struct{ Name string }
	Spec       struct {
		Version, Homepage, ShortDescription, Description, Caveats string
		Platforms                                                 []struct {
			Selector         struct{ MatchLabels map[string]string }
			URI, SHA256, Bin string
		}
	}
}

// release is what it reads of .goreleaser.yaml.
type release struct {
	Builds []struct {
		ID, Binary   string
		Goos, Goarch []string
	}
	Archives []struct {
		ID              string
		NameTemplate    string `json:"name_template"`
		Formats         []string
		FormatOverrides []struct {
			Goos    string
			Formats []string
		} `json:"format_overrides"`
		Files []string
	}
}

func render(t *testing.T, text string, data any) string {
	t.Helper()
	parsed, err := template.New("").Option("missingkey=error").Funcs(template.FuncMap{
		"addURIAndSha": func(url, tagName string) string {
			return fmt.Sprintf("uri: %s\n    sha256: %s", render(t, url, map[string]string{"TagName": tagName}), strings.Repeat("0", 64))
		},
	}).Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := parsed.Execute(&out, data); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestManifestMatchesTheRelease(t *testing.T) {
	text, err := os.ReadFile("runtime.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var got manifest
	if err := yaml.UnmarshalStrict([]byte(render(t, string(text), map[string]string{"TagName": tag})), &got); err != nil {
		t.Fatal(err)
	}
	if got.Metadata.Name != "runtime" || got.Spec.Version != tag || got.Kind != "Plugin" {
		t.Errorf("manifest: %+v", got)
	}
	if n := len(got.Spec.ShortDescription); n == 0 || n > 50 {
		t.Errorf("shortDescription has %d characters; krew's index allows 50", n)
	}
	var offered []string
	for _, platform := range got.Spec.Platforms {
		offered = append(offered, platform.URI+" "+platform.Bin)
	}

	text, err = os.ReadFile(filepath.Join("..", ".goreleaser.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var config release
	if err := yaml.Unmarshal(text, &config); err != nil {
		t.Fatal(err)
	}
	build, archive := config.Builds[0], config.Archives[0]
	if !slices.Contains(archive.Files, "LICENSE") {
		t.Error("the archive has no LICENSE: krew refuses it")
	}
	var built []string
	for _, goos := range build.Goos {
		for _, goarch := range build.Goarch {
			format, bin := archive.Formats[0], build.Binary
			for _, override := range archive.FormatOverrides {
				if override.Goos == goos {
					format = override.Formats[0]
				}
			}
			if goos == "windows" {
				bin += ".exe"
			}
			name := render(t, archive.NameTemplate, map[string]string{"Tag": tag, "Os": goos, "Arch": goarch})
			built = append(built, got.Spec.Homepage+"/releases/download/"+tag+"/"+name+"."+format+" "+bin)
		}
	}
	slices.Sort(offered)
	slices.Sort(built)
	if len(built) == 0 || !slices.Equal(offered, built) {
		t.Errorf("krew offers\n%s\nthe release builds\n%s", strings.Join(offered, "\n"), strings.Join(built, "\n"))
	}
}
