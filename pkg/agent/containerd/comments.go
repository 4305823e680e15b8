package containerd

import (
	"bytes"
	"reflect"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// commentSet are a file's comments, by the setting or table that they stand at.
type commentSet struct {
	// head is parted from the first setting by an empty line; tail comes after the last.
	head, tail []string
	at         map[string][]string
	// paths are the keys of at in the order of the file.
	paths [][]string
}

// keepComments puts the comments of a config into another one that was made from it, each before the setting or the table that it stood
// at. One whose setting is gone stands at the table that held it, or at the head of the file. They are but comments: where the result
// would not say the same as body, which is not known to happen, body stays as it is.
//
// The parser is of go-toml's package that promises no stable interface; what is used of it has examples in its documentation.
func keepComments(existing, body []byte, to format) []byte {
	existing = bytes.TrimPrefix(existing, []byte(header))
	found, ok := readComments(existing)
	if !ok {
		return body
	}
	lines, ok := expressionLines(body)
	if !ok {
		return body
	}
	var version int64
	if config, err := readTOML(existing); err == nil {
		version, _ = versionOf(config)
	}
	before := map[int][]string{}
	head := found.head
	for _, path := range found.paths {
		comments := found.at[join(path)]
		place, ok := placeOf(lines, renamed(path, version, to))
		if !ok {
			head = append(head, comments...)
			continue
		}
		before[place] = append(before[place], comments...)
	}
	out := weave(body, head, before, found.tail)
	var was, is table
	if toml.Unmarshal(body, &was) != nil || toml.Unmarshal(out, &is) != nil || !reflect.DeepEqual(was, is) {
		return body
	}
	return out
}

func weave(body []byte, head []string, before map[int][]string, tail []string) []byte {
	var out bytes.Buffer
	put := func(comments []string) {
		for _, comment := range comments {
			out.WriteString(comment + "\n")
		}
	}
	if put(head); len(head) > 0 {
		out.WriteString("\n")
	}
	at := 0
	for line := range bytes.Lines(body) {
		put(before[at])
		out.Write(line)
		at += len(line)
	}
	if len(tail) > 0 {
		out.WriteString("\n")
		put(tail)
	}
	return out.Bytes()
}

func join(path []string) string { return strings.Join(path, "\x00") }

// renamed is where Render writes a setting of a file of another version.
func renamed(path []string, version int64, to format) []string {
	path = slices.Clone(path)
	if len(path) < 2 || path[0] != "plugins" {
		return to.place(path)
	}
	path[1] = fullPluginID(path[1])
	if version >= 3 && to.version >= 3 {
		return path // the tables of plugins are the same in both
	}
	switch images := path[1] == criImagesPlugin; {
	case images && len(path) == 4 && path[2] == "pinned_images":
		path = []string{path[0], criPlugin, "sandbox_image"}
	case images && len(path) == 3 && slices.Contains(snapshotterKeys, path[2]):
		path = []string{path[0], criPlugin, "containerd", path[2]}
	case images, path[1] == criRuntimePlugin:
		path[1] = criPlugin
	}
	for _, move := range serverMoves {
		if len(path) == 3 && path[1] == move.plugin && path[2] == move.as {
			path = []string{move.table, move.key}
			break
		}
	}
	return to.place(path)
}

// placeOf finds a path's line, or that of the table that would hold it. The table of all plugins holds nothing itself.
func placeOf(lines map[string]int, path []string) (int, bool) {
	for whole := true; len(path) > 0; whole = false {
		if place, ok := lines[join(path)]; ok && (whole || len(path) > 1) {
			return place, true
		}
		path = path[:len(path)-1]
	}
	return 0, false
}

// readComments reads a config's comments; false if it is no TOML.
func readComments(data []byte) (commentSet, bool) {
	found := commentSet{at: map[string][]string{}}
	var pending []string
	end, first := 0, true // end is that of the last comment
	ok := walk(data, func(path []string, start int, own []string) {
		if path == nil {
			if first && len(pending) > 0 && emptyLine(data[end:start]) {
				found.head, pending = append(found.head, pending...), nil
			}
			pending = append(pending, own...)
			end = start + len(own[0])
			return
		}
		if first && len(pending) > 0 && emptyLine(data[end:start]) {
			found.head, pending = append(found.head, pending...), nil
		}
		first = false
		if pending = append(pending, own...); len(pending) == 0 {
			return
		}
		key := join(path)
		if _, seen := found.at[key]; !seen {
			found.paths = append(found.paths, path)
		}
		found.at[key] = append(found.at[key], pending...)
		pending = nil
	})
	found.tail = pending
	if first { // nothing but comments
		found.head, found.tail = append(found.head, pending...), nil
	}
	return found, ok
}

// emptyLine tells whether the space between two lines has an empty one, or begins with the next line's own end.
func emptyLine(between []byte) bool { return bytes.Count(between, []byte("\n")) > 1 }

// expressionLines are the offsets of the lines on which settings and tables are first named.
func expressionLines(data []byte) (map[string]int, bool) {
	lines := map[string]int{}
	ok := walk(data, func(path []string, start int, _ []string) {
		if path == nil {
			return
		}
		if _, seen := lines[join(path)]; !seen {
			lines[join(path)] = bytes.LastIndexByte(data[:start], '\n') + 1
		}
	})
	return lines, ok
}

// walk calls visit for each setting and table with its path, where its key begins, and the comments on its own lines; for a comment that
// stands alone, path is nil.
func walk(data []byte, visit func(path []string, start int, own []string)) bool {
	p := unstable.Parser{KeepComments: true}
	p.Reset(data)
	var within []string
	for p.NextExpression() {
		node := p.Expression()
		if node.Kind == unstable.Comment {
			visit(nil, int(node.Raw.Offset), []string{string(node.Data)})
			continue
		}
		var keys []string
		start := -1
		for it := node.Key(); it.Next(); {
			if start < 0 {
				start = int(it.Node().Raw.Offset)
			}
			keys = append(keys, string(it.Node().Data))
		}
		path := slices.Concat(within, keys)
		if node.Kind != unstable.KeyValue {
			within, path = keys, keys
		}
		own := inside(node)
		if next := node.Next(); next.Valid() && next.Kind == unstable.Comment {
			own = append(own, string(next.Data))
		}
		visit(path, start, own)
	}
	return p.Error() == nil
}

// inside are the comments between the lines of an array.
func inside(node *unstable.Node) []string {
	var comments []string
	for it := node.Children(); it.Next(); {
		if it.Node().Kind == unstable.Comment {
			comments = append(comments, string(it.Node().Data))
			continue
		}
		comments = append(comments, inside(it.Node())...)
	}
	return comments
}
