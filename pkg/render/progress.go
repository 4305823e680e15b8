// Package render shows the progress of a rollout: a live line on a terminal, plain lines with a heartbeat elsewhere, and a
// report at the end; all that goes to standard error, since it is not the answer of a command. It also lays out the answer of the
// plan command. It only writes. The switch command makes a Progress and hands it to the rollout as its observer.
package render

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
	"k8s.io/utils/clock"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodeswitch"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/untrusted"
)

const (
	// frameInterval is how often the live line moves.
	frameInterval = 120 * time.Millisecond
	// heartbeatInterval is how long plain output may be silent.
	heartbeatInterval = 30 * time.Second
	// defaultWidth is for a terminal that does not tell its own, in columns.
	defaultWidth = 80
)

// Style is what an output can show.
type Style struct {
	// Live draws a line that moves. Color uses ANSI colours, Unicode the signs beyond ASCII.
	Live, Color, Unicode bool
	// Width is the terminal's, in columns, asked for at each frame.
	Width func() int
}

// DetectStyle finds out what w can show. Getenv is os.Getenv.
func DetectStyle(w io.Writer, getenv func(string) string) Style {
	style := Style{Unicode: isUTF8(getenv), Width: func() int { return defaultWidth }}
	if wrapped, ok := w.(interface{ Unwrap() io.Writer }); ok {
		w = wrapped.Unwrap()
	}
	file, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) || getenv("TERM") == "dumb" {
		return style
	}
	style.Live = true
	style.Color = getenv("NO_COLOR") == ""
	style.Width = func() int {
		if width, _, err := term.GetSize(int(file.Fd())); err == nil && width > 0 {
			return width
		}
		return defaultWidth
	}
	return style
}

// isUTF8 reads the locale as POSIX has it: the first of the three that is set decides.
func isUTF8(getenv func(string) string) bool {
	locale := strings.ToLower(cmp.Or(getenv("LC_ALL"), getenv("LC_CTYPE"), getenv("LANG")))
	return strings.Contains(locale, "utf-8") || strings.Contains(locale, "utf8")
}

// Progress shows updates. It is a nodeswitch.Observer; Close ends it.
type Progress struct {
	w     io.Writer
	style Style
	clock clock.WithTicker

	mu     sync.Mutex
	active []*activeNode
	frame  int
	drawn  bool
	spoke  time.Time // when the last line was written

	stop    chan struct{}
	stopped chan struct{}
}

// activeNode is a node in a stage.
type activeNode struct {
	name  string
	stage nodeswitch.Stage
	since time.Time
	text  string
}

// NewProgress starts to show progress on w.
func NewProgress(w io.Writer, style Style, c clock.WithTicker) *Progress {
	p := &Progress{w: w, style: style, clock: c, spoke: c.Now(), stop: make(chan struct{}), stopped: make(chan struct{})}
	interval := heartbeatInterval
	if style.Live {
		interval = frameInterval
	}
	ticker := c.NewTicker(interval)
	go func() {
		defer close(p.stopped)
		defer ticker.Stop()
		for {
			select {
			case <-p.stop:
				return
			case <-ticker.C():
				p.tick()
			}
		}
	}()
	return p
}

// Close ends the live line. It may be called once.
func (p *Progress) Close() {
	close(p.stop)
	<-p.stopped
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
}

// Pause has something else written where the live line is.
func (p *Progress) Pause(write func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
	write()
	p.draw()
}

// Observe shows one update.
func (p *Progress) Observe(u nodeswitch.Update) {
	p.mu.Lock()
	defer p.mu.Unlock()
	text := clean(u.Text)
	switch u.Kind {
	case nodeswitch.StageBegun:
		p.active = append(p.without(u.Node), &activeNode{name: u.Node, stage: u.Stage, since: p.clock.Now()})
		if !p.style.Live {
			p.line(signNone, u, "started")
		}
	case nodeswitch.StageEnded:
		p.active = p.without(u.Node)
		if u.Failed {
			p.line(signFailed, u, fmt.Sprintf("failed after %s: %s", Duration(u.Elapsed), text))
		} else {
			p.line(signDone, u, "done in "+Duration(u.Elapsed))
		}
	case nodeswitch.Info:
		p.note(u.Node, text)
		p.line(signInfo, u, text)
	case nodeswitch.Warning:
		p.line(signWarning, u, "warning: "+text)
	case nodeswitch.AgentStep:
		p.step(u)
	}
	p.draw()
}

// step shows a step on the node: its progress as it goes on, its end as a line.
func (p *Progress) step(u nodeswitch.Update) {
	step := u.Step
	title := clean(cmp.Or(step.Title, step.ID))
	more := ""
	if step.Message != "" {
		more = ": " + clean(step.Message)
	}
	took := ""
	if step.ElapsedMillis > 0 {
		took = " in " + Duration(time.Duration(step.ElapsedMillis)*time.Millisecond)
	}
	switch step.State {
	case protocol.StepStarted:
		p.note(u.Node, title)
	case protocol.StepProgress:
		if step.Total > 0 {
			more = fmt.Sprintf(": %d of %d %s%s", step.Done, step.Total, clean(step.Unit), more)
		}
		p.note(u.Node, title+more)
	case protocol.StepDone:
		p.line(signDone, u, title+": done"+took+more)
	case protocol.StepSkipped:
		p.line(signInfo, u, title+": skipped"+more)
	case protocol.StepFailed:
		p.line(signFailed, u, title+": failed"+took+more)
	case protocol.StepReverting:
		p.note(u.Node, "undoing: "+title)
	case protocol.StepReverted:
		p.line(signDone, u, title+": undone"+took+more)
	case protocol.StepRevertFailed:
		p.line(signFailed, u, title+": could not be undone"+more)
	}
}

// note keeps what a node does now, for the live line and the heartbeat.
func (p *Progress) note(node, text string) {
	for _, a := range p.active {
		if a.name == node {
			a.text = text
		}
	}
}

func (p *Progress) without(node string) []*activeNode {
	var rest []*activeNode
	for _, a := range p.active {
		if a.name != node {
			rest = append(rest, a)
		}
	}
	return rest
}

// tick moves the live line, or says that something still goes on.
func (p *Progress) tick() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.style.Live {
		p.frame++
		p.draw()
		return
	}
	now := p.clock.Now()
	if now.Sub(p.spoke) < heartbeatInterval {
		return
	}
	for _, a := range p.active {
		text := "still running after " + Duration(now.Sub(a.since))
		if a.text != "" {
			text += ": " + a.text
		}
		p.line(signNone, nodeswitch.Update{Time: now, Node: a.name, Stage: a.stage}, text)
	}
}

// sign comes before a line; a word beside it says the same.
type sign int

const (
	signNone sign = iota
	signDone
	signFailed
	signWarning
	signInfo
)

var (
	unicodeSigns = map[sign]string{signNone: " ", signDone: "✓", signFailed: "✗", signWarning: "!", signInfo: "•"}
	asciiSigns   = map[sign]string{signNone: " ", signDone: "+", signFailed: "x", signWarning: "!", signInfo: "-"}
	signColors   = map[sign]string{signDone: "32", signFailed: "31", signWarning: "33", signInfo: "2"}
)

func (style Style) sign(s sign) string {
	text := asciiSigns[s]
	if style.Unicode {
		text = unicodeSigns[s]
	}
	if color, ok := signColors[s]; ok && style.Color {
		text = "\x1b[" + color + "m" + text + "\x1b[0m"
	}
	return text
}

// line writes a line that stays.
func (p *Progress) line(s sign, u nodeswitch.Update, text string) {
	p.erase()
	p.spoke = p.clock.Now()
	at := ""
	if !p.style.Live {
		at = p.spoke.Local().Format(time.TimeOnly) + " "
	}
	_, _ = fmt.Fprintf(p.w, "%s%s %s %-8s  %s\n", at, p.style.sign(s), u.Node, u.Stage, text) // progress that cannot be written stops nothing
}

var (
	unicodeFrames = []string{"⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"}
	asciiFrames   = []string{"|", "/", "-", `\`}
)

// draw writes the live line, of what was begun last.
func (p *Progress) draw() {
	if !p.style.Live || len(p.active) == 0 {
		return
	}
	p.erase()
	a := p.active[len(p.active)-1]
	frames := asciiFrames
	if p.style.Unicode {
		frames = unicodeFrames
	}
	text := fmt.Sprintf("%s %s %-8s  %s", frames[p.frame%len(frames)], a.name, a.stage, Duration(p.clock.Now().Sub(a.since)))
	if a.text != "" {
		text += "  " + a.text
	}
	_, _ = io.WriteString(p.w, truncate(text, p.style.Width()-1))
	p.drawn = true
}

// erase removes the live line.
func (p *Progress) erase() {
	if p.drawn {
		_, _ = p.w.Write(untrusted.Erase)
		p.drawn = false
	}
}

// maxClean bounds a text in a line, in bytes.
const maxClean = 4 << 10

// clean makes one line of a text that other programs have a part in, without anything that moves a cursor.
func clean(text string) string { return untrusted.Line(text, maxClean) }

// truncate cuts a text to a number of columns, one for each character.
func truncate(text string, width int) string {
	runes := []rune(text)
	if len(runes) <= max(width, 1) {
		return text
	}
	return string(runes[:max(width, 1)])
}

// Duration is for people: "0.4s", "12s", "3m05s", "1h02m".
func Duration(d time.Duration) string {
	if d = d.Round(100 * time.Millisecond); d >= 10*time.Second {
		d = d.Round(time.Second)
	}
	switch {
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	default:
		d = d.Round(time.Minute)
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
}
