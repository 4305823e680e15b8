package paging

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// pods lists as an API server does it: some at a time, with a token to continue by.
func pods(count int, asked *[]metav1.ListOptions) func(context.Context, metav1.ListOptions) (*corev1.PodList, error) {
	return func(_ context.Context, options metav1.ListOptions) (*corev1.PodList, error) {
		*asked = append(*asked, options)
		from, _ := strconv.Atoi(options.Continue) // empty for the first page
		list := &corev1.PodList{}
		for i := from; i < min(count, from+int(options.Limit)); i++ {
			list.Items = append(list.Items, corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint(i)}})
		}
		if to := from + len(list.Items); to < count {
			list.Continue = strconv.Itoa(to)
		}
		return list, nil
	}
}

func TestEach(t *testing.T) {
	for _, test := range []struct {
		name               string
		count, stop, pages int
		limit              int64
		want               int
	}{
		{name: "none", pages: 1},
		{name: "one page", count: Size, pages: 1, want: Size},
		{name: "pages", count: 2*Size + 1, pages: 3, want: 2*Size + 1},
		{name: "small pages", count: 5, limit: 2, pages: 3, want: 5},
		{name: "enough", count: 100, limit: 10, stop: 15, pages: 2, want: 15},
	} {
		var asked []metav1.ListOptions
		seen := 0
		err := Each(t.Context(), pods(test.count, &asked), metav1.ListOptions{LabelSelector: "a=b", Limit: test.limit}, func(pod *corev1.Pod) bool {
			if pod.Name != fmt.Sprint(seen) {
				t.Errorf("%s: pod %s, want %d", test.name, pod.Name, seen)
			}
			seen++
			return seen != test.stop
		})
		if err != nil || seen != test.want || len(asked) != test.pages {
			t.Errorf("%s: %d pods, %d pages, %v", test.name, seen, len(asked), err)
		}
		if slices.ContainsFunc(asked, func(o metav1.ListOptions) bool { return o.Limit == 0 || o.LabelSelector != "a=b" }) {
			t.Errorf("%s: asked %+v", test.name, asked)
		}
	}
}

func TestAll(t *testing.T) {
	var asked []metav1.ListOptions
	all, err := All[corev1.Pod](t.Context(), pods(Size+2, &asked), metav1.ListOptions{})
	if err != nil || len(all) != Size+2 || all[Size+1].Name != fmt.Sprint(Size+1) {
		t.Errorf("%d pods, %v", len(all), err)
	}
	broken := errors.New("broken")
	_, err = All[corev1.Pod](t.Context(), func(context.Context, metav1.ListOptions) (*corev1.PodList, error) { return nil, broken }, metav1.ListOptions{})
	if !errors.Is(err, broken) {
		t.Error(err)
	}
	if _, err := All[corev1.Node](t.Context(), pods(1, &asked), metav1.ListOptions{}); err == nil {
		t.Error("pods are taken for Nodes")
	}
}
