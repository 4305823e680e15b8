package nodejob

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// TestNoDNS: the canary's names count where any DNS server could answer, and in doubt.
func TestNoDNS(t *testing.T) {
	s := server.Get(t)
	ctx, client := t.Context(), s.Client()
	system := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: metav1.NamespaceSystem}}
	if _, err := client.CoreV1().Namespaces().Create(ctx, system, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	r := &Runner{Client: client}
	demand := func(when, want string) {
		t.Helper()
		if got := (Prover{r}).noDNS(ctx); (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", when, got, want)
		}
	}
	demand("without the Service", "no kube-dns Service")
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "kube-dns"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 53, Protocol: corev1.ProtocolUDP}}}}
	if _, err := client.CoreV1().Services(metav1.NamespaceSystem).Create(ctx, service, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	demand("without a slice", "")
	// A cluster may have Endpoints alone.
	all := client.CoreV1().Endpoints(metav1.NamespaceSystem)
	addresses := []corev1.EndpointAddress{{IP: "10.0.0.1"}}
	endpoints, err := all.Create(ctx, &corev1.Endpoints{
		ObjectMeta: metav1.ObjectMeta{Name: "kube-dns"}, Subsets: []corev1.EndpointSubset{{NotReadyAddresses: addresses, Ports: []corev1.EndpointPort{{Port: 53}}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	demand("without a slice and with Endpoints that are not ready", "no server of the kube-dns Service is ready")
	endpoints.Subsets[0] = corev1.EndpointSubset{Addresses: addresses, Ports: []corev1.EndpointPort{{Port: 53}}}
	if _, err := all.Update(ctx, endpoints, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	demand("without a slice and with Endpoints that are ready", "")
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: "kube-dns-1", Labels: map[string]string{discoveryv1.LabelServiceName: "kube-dns"}},
		AddressType: discoveryv1.AddressTypeIPv4, Endpoints: []discoveryv1.Endpoint{},
	}
	s.PutEndpointSlice(t, slice)
	demand("without servers", "no server of the kube-dns Service is ready")
	for _, test := range []struct {
		when  string
		ready *bool
		want  string
	}{
		{"one that is not ready", ptr.To(false), "no server"},
		{"one that is", ptr.To(true), ""},
		{"one that is not known to be", nil, ""},
	} {
		slice.Endpoints = []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1"}, Conditions: discoveryv1.EndpointConditions{Ready: test.ready}}}
		s.PutEndpointSlice(t, slice)
		demand(test.when, test.want)
	}
}
