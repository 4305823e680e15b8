package adopt

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
)

const (
	diffID = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	config = `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["` + diffID + `"]}}`
	dbs    = "image/overlay2/imagedb/content/sha256"
	layers = "image/overlay2/layerdb/sha256"
)

// store writes a store with one image of one layer, in which change replaces files (nil removes them).
func store(t *testing.T, change map[string][]byte) (string, string) {
	t.Helper()
	root := t.TempDir()
	id, chain := digest.FromString(config), digest.Digest(diffID)
	files := map[string][]byte{
		filepath.Join(dbs, id.Encoded()):                   []byte(config),
		filepath.Join(layers, chain.Encoded(), "diff"):     []byte(diffID),
		filepath.Join(layers, chain.Encoded(), "cache-id"): []byte("abc123"),
		filepath.Join(layers, chain.Encoded(), "size"):     []byte("12"),
		"overlay2/abc123/link":                             []byte("L"),
	}
	for name, data := range change {
		if name == "config" {
			name = filepath.Join(dbs, id.Encoded())
		} else {
			name = filepath.Join(layers, chain.Encoded(), name)
		}
		files[name] = data
	}
	for name, data := range files {
		if err := os.MkdirAll(filepath.Join(root, filepath.Dir(name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if data == nil {
			continue
		}
		if err := os.WriteFile(filepath.Join(root, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root, id.String()
}

func TestStore(t *testing.T) {
	for _, test := range []struct {
		name   string
		change map[string][]byte
		ok     bool
	}{
		{"good", nil, true},
		{"config of another digest", map[string][]byte{"config": []byte(config + " ")}, false},
		{"no config", map[string][]byte{"config": nil}, false},
		{"no layer directory", map[string][]byte{"cache-id": nil}, false},
		{"a directory elsewhere", map[string][]byte{"cache-id": []byte("../../etc")}, false},
		{"another diff", map[string][]byte{"diff": []byte("sha256:bb")}, false},
		{"a parent that the config does not name", map[string][]byte{"parent": []byte(diffID)}, false},
		{"no size", map[string][]byte{"size": nil}, false},
		{"negative size", map[string][]byte{"size": []byte("-1")}, false},
	} {
		root, id := store(t, test.change)
		s, err := Open(root)
		if err != nil {
			t.Fatal(err)
		}
		image, err := s.Image(id)
		if (err == nil) != test.ok || err != nil && !errors.Is(err, ErrUnsuitable) {
			t.Errorf("%s: %v", test.name, err)
		}
		if test.ok && (len(image.Layers) != 1 || s.Dir(image.Layers[0]) != filepath.Join(root, "overlay2/abc123/diff") || !s.Holds(t.Context(), image.ID, image.Layers[0])) {
			t.Errorf("%s: %+v", test.name, image)
		}
	}
}

func TestStoreHolds(t *testing.T) {
	root, id := store(t, nil)
	s, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	image, err := s.Image(id)
	if err != nil {
		t.Fatal(err)
	}
	layer := filepath.Join(root, layers, image.Layers[0].ChainID.Encoded(), "cache-id")
	if err := os.WriteFile(layer, []byte("def"), 0o600); err != nil {
		t.Fatal(err)
	}
	if s.Holds(t.Context(), image.ID, image.Layers[0]) {
		t.Error("a layer that was pulled again counts as held")
	}
	if err := os.WriteFile(layer, []byte("abc123"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(s.configPath(image.ID)); err != nil {
		t.Fatal(err)
	}
	if s.Holds(t.Context(), image.ID, image.Layers[0]) {
		t.Error("a removed image counts as held")
	}
}

func TestOpenOther(t *testing.T) {
	root, _ := store(t, nil)
	mapped := filepath.Join(t.TempDir(), "100000.100000")
	if err := os.Symlink(root, mapped); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{t.TempDir(), mapped} {
		if _, err := Open(dir); !errors.Is(err, ErrUnsuitable) {
			t.Errorf("%s: %v", dir, err)
		}
	}
}

// FuzzStore gives files that Docker might have left broken.
func FuzzStore(f *testing.F) {
	f.Add([]byte(config), []byte("abc123"), []byte(diffID), []byte("12"))
	f.Add([]byte(`{"rootfs":{"diff_ids":[":"]}}`), []byte(""), []byte("x"), []byte("-"))
	f.Fuzz(func(t *testing.T, config, cache, diff, size []byte) {
		id := digest.FromBytes(config)
		root, _ := store(t, map[string][]byte{"cache-id": cache, "diff": diff, "size": size})
		if err := os.WriteFile(filepath.Join(root, dbs, id.Encoded()), config, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(root)
		if err != nil {
			t.Fatal(err)
		}
		image, err := s.Image(id.String())
		if err != nil && !errors.Is(err, ErrUnsuitable) {
			t.Error(err)
		}
		for _, layer := range image.Layers {
			if filepath.Dir(filepath.Dir(s.Dir(layer))) != filepath.Join(root, "overlay2") {
				t.Errorf("a layer in %s", s.Dir(layer))
			}
		}
	})
}
