package rollout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/claim"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/untrusted"
)

// SlotsName is the ConfigMap that holds the slots of all rollouts of a cluster. It is one object, so that a slot is taken only as the others were seen.
const SlotsName = "rollout-slots"

// Slot says that a node is in flight, or was left out of service.
type Slot struct {
	Node string `json:"-"`
	// Holder is as of a claim: unique among processes, with a part for people.
	Holder       string    `json:"holder"`
	ControlPlane bool      `json:"controlPlane,omitempty"`
	Since        time.Time `json:"since"`
	// Left: the holder's work has ended, but the node may not serve, or another run has it.
	Left bool `json:"left,omitempty"`
	// idle: nobody works on the node.
	idle bool
}

// Person is the part of the holder that is for people.
func (s Slot) Person() string {
	who, _, _ := strings.Cut(s.Holder, "/")
	return untrusted.Line(who, maxWho)
}

// ErrNotHeld says that another rollout has removed a slot, since nobody seemed to work on its node, or may have.
var ErrNotHeld = errors.New("this rollout took too long to claim the node, and no longer has its slot")

// The bounds of what is read of a ConfigMap that others may write.
const (
	maxSlots     = 5000
	maxSlotBytes = 1 << 10
	maxWho       = 128
)

// readSlots reads what can be read. What cannot is no slot, and is removed with the next change.
func readSlots(data map[string]string) map[string]Slot {
	slots := map[string]Slot{}
	for _, node := range slices.Sorted(maps.Keys(data)) {
		var slot Slot
		if len(slots) == maxSlots || len(data[node]) > maxSlotBytes || len(validation.IsDNS1123Subdomain(node)) > 0 {
			continue
		}
		if json.Unmarshal([]byte(data[node]), &slot) != nil || slot.Holder == "" {
			continue
		}
		slot.Node = node
		slots[node] = slot
	}
	return slots
}

// Slots takes and gives back the slots of one process. But for Holds, it is not for several goroutines.
type Slots struct {
	Client  kubernetes.Interface
	Clock   clock.WithTicker
	Claims  *claim.Claims
	Cluster Cluster
	// EnsureNamespace makes this program's namespace where it is missing.
	EnsureNamespace func(ctx context.Context) error

	known *corev1.ConfigMap
	// seen is what this process has seen of others' slots. Other processes have other clocks.
	seen map[string]sighting

	mu sync.Mutex
	// taken is when this process asked for the slots that it took.
	taken map[string]time.Time
}

// sighting is since when a slot is as it is, and when its node's claim was looked at last.
type sighting struct {
	slot      Slot
	at, asked time.Time
}

// deadAfter is how long a slot is seen without a change and without a claim on its node before nobody seems to work on that. Who takes a slot takes the
// claim next, which can take as long as it takes to prove that an earlier claim has ended.
const deadAfter = 2 * claim.ExpiryProof

// claimLook is how often the claim on the node of another's slot is looked at: twice within the time that proves that it has ended.
const claimLook = claim.ExpiryProof / 2

// slotTries is how often a change meets others that change the slots at the same moment.
const slotTries = 20

// slotPause is the shortest pause before such a change is tried again.
const slotPause = 20 * time.Millisecond

// Change gives back the slots of nodes whose work has ended, but for those that are left (true), and takes those that choose returns for the slots of
// others, in one write. Choose may be called again, with other slots: only its last answer counts. What is neither given back nor taken costs a
// request only where fresh is set.
func (s *Slots) Change(ctx context.Context, ended map[string]bool, fresh bool, choose func(others []Slot) []Slot) error {
	for range slotTries {
		if s.known == nil || fresh {
			if err := s.read(ctx); err != nil {
				return err
			}
		}
		fresh = true
		slots := readSlots(s.known.Data)
		for node, left := range ended {
			if slot := slots[node]; slot.Holder != s.Claims.Holder {
				continue
			} else if slot.Left = left; left {
				slots[node] = slot
			} else {
				delete(slots, node)
			}
		}
		others, err := s.others(ctx, slots)
		if err != nil {
			return err
		}
		asked := s.Clock.Now()
		chosen := choose(others)
		for _, slot := range chosen {
			slot.Holder, slot.Since = s.Claims.Holder, asked.UTC().Truncate(time.Second)
			slots[slot.Node] = slot
		}
		done, err := s.write(ctx, slots)
		if err != nil {
			return err
		}
		if done {
			s.note(chosen, asked)
			return nil
		}
		if err := s.pause(ctx); err != nil {
			return err
		}
	}
	return fmt.Errorf("take slots in configmap %s: other rollouts do so at the same time", SlotsName)
}

func (s *Slots) note(taken []Slot, asked time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken == nil {
		s.taken = map[string]time.Time{}
	}
	for _, slot := range taken {
		s.taken[slot.Node] = asked
	}
}

// pause is for others that change the slots at the same moment.
func (s *Slots) pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-s.Clock.After(wait.Jitter(slotPause, 2)):
		return nil
	}
}

// Holds fails with ErrNotHeld unless the slot of a node is still this process's. It is asked under the claim on that node: from then on nobody removes
// the slot, since that takes the claim. Within claim.ExpiryProof of the taking, nobody can have removed it.
func (s *Slots) Holds(ctx context.Context, node string) error {
	s.mu.Lock()
	taken, now := s.taken[node], s.Clock.Now()
	s.mu.Unlock()
	// The monotonic clock stops while a machine sleeps, and the other one can be set.
	mono, wall := now.Sub(taken), now.Round(0).Sub(taken.Round(0))
	if min(mono, wall) >= 0 && max(mono, wall) < claim.ExpiryProof {
		return nil
	}
	object, err := s.Client.CoreV1().ConfigMaps(nodejob.Namespace).Get(ctx, SlotsName, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("%w, as far as is known: get configmap %s: %w", ErrNotHeld, SlotsName, err)
	}
	if err != nil || readSlots(object.Data)[node].Holder != s.Claims.Holder {
		return ErrNotHeld
	}
	return nil
}

// read reads the slots as they are now.
func (s *Slots) read(ctx context.Context) error {
	object, err := s.Client.CoreV1().ConfigMaps(nodejob.Namespace).Get(ctx, SlotsName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		object, err = &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: nodejob.Namespace, Name: SlotsName, Labels: nodejob.Labels()}}, nil
	}
	if err != nil {
		return fmt.Errorf("get configmap %s: %w", SlotsName, err)
	}
	s.known = object
	return nil
}

// write writes the slots as a change of what is known; done is false if somebody else has changed that meanwhile.
func (s *Slots) write(ctx context.Context, slots map[string]Slot) (done bool, err error) {
	data := map[string]string{}
	for node, slot := range slots {
		text, err := json.Marshal(slot)
		if err != nil {
			return false, fmt.Errorf("encode slot of node %s: %w", node, err)
		}
		data[node] = string(text)
	}
	if maps.Equal(data, s.known.Data) {
		return true, nil
	}
	object := s.known.DeepCopy()
	object.Data = data
	api := s.Client.CoreV1().ConfigMaps(nodejob.Namespace)
	if object.ResourceVersion != "" {
		object, err = api.Update(ctx, object, metav1.UpdateOptions{})
	} else {
		object, err = api.Create(ctx, object, metav1.CreateOptions{})
		if apierrors.IsNotFound(err) { // the namespace
			return false, s.EnsureNamespace(ctx)
		}
	}
	switch {
	case apierrors.IsConflict(err), apierrors.IsAlreadyExists(err), apierrors.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("write configmap %s: %w", SlotsName, err)
	}
	s.known = object
	return true, nil
}

// others are the slots of nodes that this process does not work on. It removes those that nobody works on and whose nodes serve, or are gone. A node
// that does not serve counts until it does, or a run resumes it.
func (s *Slots) others(ctx context.Context, slots map[string]Slot) ([]Slot, error) {
	if s.seen == nil {
		s.seen = map[string]sighting{}
	}
	maps.DeleteFunc(s.seen, func(node string, _ sighting) bool { _, there := slots[node]; return !there })
	var others []Slot
	for _, node := range slices.Sorted(maps.Keys(slots)) {
		slot := slots[node]
		if slot.Holder == s.Claims.Holder && !slot.Left {
			continue
		}
		var err error
		removable := false
		if slot.idle, err = s.isIdle(ctx, slot); err == nil && slot.idle {
			removable, err = s.isOver(ctx, node)
		}
		if err != nil {
			return nil, err
		}
		if removable {
			delete(slots, node)
			continue
		}
		others = append(others, slot)
	}
	return others, nil
}

// isIdle reports whether nobody works on a slot's node: its holder says so, or the claim of the holder has ended, or there has been no claim for
// deadAfter.
func (s *Slots) isIdle(ctx context.Context, slot Slot) (bool, error) {
	now := s.Clock.Now()
	seen, ok := s.seen[slot.Node]
	if !ok || seen.slot.Holder != slot.Holder || !seen.slot.Since.Equal(slot.Since) || seen.slot.Left != slot.Left {
		seen = sighting{slot: slot, at: now}
	} else if now.Sub(seen.asked) < claimLook {
		return seen.slot.idle, nil
	}
	other, _, expired, err := s.Claims.By(ctx, slot.Node)
	if err != nil {
		return false, err
	}
	seen.asked = now
	seen.slot.idle = (other == nil || expired) &&
		(slot.Left || expired && other.Holder == slot.Holder || now.Sub(seen.at) >= deadAfter)
	s.seen[slot.Node] = seen
	return seen.slot.idle, nil
}

// isOver reports whether the slot of a node that nobody works on is of no use: the node serves, or is gone. A holder that only slept has lost the claim
// then, so that it changes nothing when it wakes.
func (s *Slots) isOver(ctx context.Context, name string) (bool, error) {
	if node := s.Cluster.Node(name); node != nil && Unavailable(node) != "" {
		return false, nil
	}
	held, _, err := s.Claims.Take(ctx, name, "", "", func(string) {})
	var other *claim.HeldError
	if errors.As(err, &other) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	over, err := s.fence(ctx, name, held)
	if err = errors.Join(err, held.Release(ctx)); err != nil {
		return false, fmt.Errorf("look at node %s, whose slot nobody holds: %w", name, err)
	}
	return over, nil
}

// fence is false for a node that does not serve. From any other it keeps the slot's holder, also where that sleeps right before a write.
func (s *Slots) fence(ctx context.Context, name string, held *claim.Claim) (over bool, err error) {
	node, err := s.Client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return true, nil
	}
	if err != nil || Unavailable(node) != "" {
		return false, err
	}
	editor := &nodestate.Editor{
		Client: s.Client, Node: name, Claim: held, Seen: func(context.Context) (*corev1.Node, error) { return node, nil },
		Retry: func(_ context.Context, request func() error) error { return request() },
	}
	editor.Took(node)
	if node, err = editor.Fence(ctx); apierrors.IsConflict(err) { // it is looked at again
		return false, nil
	} else if err != nil {
		return false, err
	}
	return Unavailable(node) == "", nil
}
