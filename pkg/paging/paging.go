// Package paging reads lists of objects page by page, so that neither the API server nor this program holds a list of unknown size at once. It decides
// nothing of what is read.
package paging

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// Size is how many objects a page has unless options say otherwise; kubectl's --chunk-size has the same default.
const Size = 500

// Each calls do with each object of a list until that returns false. List is a client's List method. A list that takes so long that the server cannot
// continue it any more ends with that error.
func Each[T any, L runtime.Object](ctx context.Context, list func(context.Context, metav1.ListOptions) (L, error), options metav1.ListOptions, do func(*T) bool) error {
	if options.Limit == 0 {
		options.Limit = Size
	}
	for {
		page, err := list(ctx, options)
		if err != nil {
			return err
		}
		more := true
		err = meta.EachListItem(page, func(object runtime.Object) error {
			item, ok := any(object).(*T)
			if !ok {
				return fmt.Errorf("%T is in a %T", object, page)
			}
			more = more && do(item)
			return nil
		})
		if err != nil {
			return err
		}
		next, err := meta.ListAccessor(page)
		if err != nil {
			return err
		}
		if options.Continue = next.GetContinue(); !more || options.Continue == "" {
			return nil
		}
	}
}

// All is Each for all objects at once.
func All[T any, L runtime.Object](ctx context.Context, list func(context.Context, metav1.ListOptions) (L, error), options metav1.ListOptions) ([]T, error) {
	var all []T
	err := Each(ctx, list, options, func(item *T) bool {
		all = append(all, *item)
		return true
	})
	return all, err
}
