package apiserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// PutBudget creates a PodDisruptionBudget, or updates one of the same name, with its status, in the version that the server has. It is
// removed when the test ends, or by RemoveBudget.
func (s *Server) PutBudget(tb testing.TB, budget *policyv1.PodDisruptionBudget) {
	tb.Helper()
	s.put(tb, budgets, budget)
}

// RemoveBudget removes a PodDisruptionBudget, if it is there.
func (s *Server) RemoveBudget(tb testing.TB, namespace, name string) {
	tb.Helper()
	s.remove(tb, budgets, namespace, name)
}

// PutCronJob is PutBudget for CronJobs.
func (s *Server) PutCronJob(tb testing.TB, job *batchv1.CronJob) {
	tb.Helper()
	s.put(tb, resource{"cronjobs", []string{"batch/v1", "batch/v1beta1"}}, job)
}

// PutEndpointSlice is PutBudget for EndpointSlices.
func (s *Server) PutEndpointSlice(tb testing.TB, slice *discoveryv1.EndpointSlice) {
	tb.Helper()
	s.put(tb, resource{"endpointslices", []string{"discovery.k8s.io/v1", "discovery.k8s.io/v1beta1"}}, slice)
}

// resource is one with the versions that servers may have it in, the newest first.
type resource struct {
	name     string
	versions []string
}

var budgets = resource{"poddisruptionbudgets", []string{"policy/v1", "policy/v1beta1"}}

// errNotServed says that the server has none of a resource's versions.
var errNotServed = errors.New("the server has no version of it")

func (s *Server) put(tb testing.TB, r resource, object metav1.Object) {
	tb.Helper()
	if err := s.tryPut(r, object); err != nil {
		tb.Fatalf("put %s %s/%s: %v", r.name, object.GetNamespace(), object.GetName(), err)
	}
	tb.Cleanup(func() { s.remove(tb, r, object.GetNamespace(), object.GetName()) })
}

func (s *Server) tryPut(r resource, object metav1.Object) error {
	data, err := json.Marshal(object)
	if err != nil {
		return err
	}
	for _, version := range r.versions {
		fields := map[string]any{}
		if err := json.Unmarshal(data, &fields); err != nil {
			return err
		}
		fields["apiVersion"], fields["kind"] = version, reflect.TypeOf(object).Elem().Name()
		path := fmt.Sprintf("/apis/%s/namespaces/%s/%s", version, object.GetNamespace(), r.name)
		stored, err := s.send("POST", path, fields)
		path += "/" + object.GetName()
		if apierrors.IsAlreadyExists(err) {
			if stored, err = s.send("GET", path, nil); err == nil {
				metadata := fields["metadata"].(map[string]any)
				maps.Copy(stored["metadata"].(map[string]any), metadata)
				fields["metadata"] = stored["metadata"]
				stored, err = s.send("PUT", path, fields)
			}
		}
		if apierrors.IsNotFound(err) {
			continue
		}
		if status, has := fields["status"].(map[string]any); err == nil && has && len(status) > 0 {
			stored["status"] = status
			_, err = s.send("PUT", path+"/status", stored)
		}
		return err
	}
	return errNotServed
}

func (s *Server) remove(tb testing.TB, r resource, namespace, name string) {
	tb.Helper()
	for _, version := range r.versions {
		_, err := s.send("DELETE", fmt.Sprintf("/apis/%s/namespaces/%s/%s/%s", version, namespace, r.name, name), nil)
		if err != nil && !apierrors.IsNotFound(err) {
			tb.Errorf("remove %s %s/%s: %v", r.name, namespace, name, err)
		}
	}
}

func (s *Server) send(verb, path string, body map[string]any) (map[string]any, error) {
	request := s.client.Discovery().RESTClient().Verb(verb).AbsPath(path).SetHeader("Content-Type", "application/json")
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		request = request.Body(data)
	}
	answer, err := request.Do(context.Background()).Raw()
	if err != nil {
		return nil, err
	}
	stored := map[string]any{}
	return stored, json.Unmarshal(answer, &stored)
}
