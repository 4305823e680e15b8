package nodewatch

import (
	"context"
	"errors"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
)

// feed is how objects are watched.
type feed struct{ clock clock.WithTicker }

// keep calls follow, whose watch ends sooner or later, until ctx ends.
func (f feed) keep(ctx context.Context, follow func(context.Context) error) {
	for {
		interval := pollInterval
		if err := follow(ctx); apierrors.IsForbidden(err) {
			interval = forbiddenPause
		}
		timer := f.clock.NewTimer(interval)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C():
		}
	}
}

// follow passes on the events of one kind of objects from a version on. Begun is called before the first, when the server has begun to watch. A watch
// that the server ends in time is continued.
func (f feed) follow(ctx context.Context, options metav1.ListOptions, version string, start func(context.Context, metav1.ListOptions) (apiwatch.Interface, error),
	take func(apiwatch.Event) error, begun func(),
) error {
	options.AllowWatchBookmarks, options.TimeoutSeconds = true, ptr.To[int64](watchSeconds)
	for {
		options.ResourceVersion = version
		events, err := start(ctx, options)
		if err != nil {
			return err
		}
		if begun != nil {
			begun()
			begun = nil
		}
		began := f.clock.Now()
		err = f.consume(ctx, events, &version, take)
		events.Stop()
		if err != nil || f.clock.Now().Sub(began) < pollInterval { // one that ends at once would be a hot loop
			return err
		}
	}
}

// consume returns nil when the server ends the watch.
func (f feed) consume(ctx context.Context, events apiwatch.Interface, version *string, take func(apiwatch.Event) error) error {
	timer := f.clock.NewTimer(silence)
	defer timer.Stop()
	for {
		var event apiwatch.Event
		ok := false
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timer.C():
			return errors.New("the watch is silent")
		case event, ok = <-events.ResultChan():
		}
		if !ok {
			return nil
		}
		if event.Type == apiwatch.Error { // 410 Gone, say: the objects are read again
			return apierrors.FromObject(event.Object)
		}
		timer.Reset(silence)
		object, err := meta.Accessor(event.Object)
		if err != nil {
			return err
		}
		*version = object.GetResourceVersion()
		if event.Type == apiwatch.Bookmark {
			continue
		}
		if err := take(event); err != nil {
			return err
		}
	}
}
