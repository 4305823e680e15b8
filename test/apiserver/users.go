package apiserver

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// URL is where the server listens, "https://127.0.0.1:…".
func (s *Server) URL() string { return s.url }

// Admin is a config that may do everything.
func (s *Server) Admin() *rest.Config { return rest.CopyConfig(s.admin) }

// Client is a client that may do everything.
func (s *Server) Client() kubernetes.Interface { return s.client }

// User makes a user who may do what rules say, cluster-wide, and nothing else beyond what every user may. The rights end with
// the test.
func (s *Server) User(tb testing.TB, name string, rules ...rbacv1.PolicyRule) *rest.Config {
	tb.Helper()
	ctx := context.Background()
	object := metav1.ObjectMeta{Name: "test-user-" + name}
	roles, bindings := s.client.RbacV1().ClusterRoles(), s.client.RbacV1().ClusterRoleBindings()
	if _, err := roles.Create(ctx, &rbacv1.ClusterRole{ObjectMeta: object, Rules: rules}, metav1.CreateOptions{}); err != nil {
		tb.Fatalf("create role of user %s: %v", name, err)
	}
	tb.Cleanup(func() { cleanup(tb, "role", name, roles.Delete(ctx, object.Name, metav1.DeleteOptions{})) })
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: object,
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: object.Name},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: name}},
	}
	if _, err := bindings.Create(ctx, binding, metav1.CreateOptions{}); err != nil {
		tb.Fatalf("create role binding of user %s: %v", name, err)
	}
	tb.Cleanup(func() { cleanup(tb, "role binding", name, bindings.Delete(ctx, object.Name, metav1.DeleteOptions{})) })
	config, err := s.config(name)
	if err != nil {
		tb.Fatalf("make user %s: %v", name, err)
	}
	return config
}

// Allow is a rule; group, resources and verbs are RBAC's, resources comma-separated: Allow("", "nodes", "get", "list").
func Allow(group, resources string, verbs ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{APIGroups: []string{group}, Resources: strings.Split(resources, ","), Verbs: verbs}
}

// config is a connection with a client certificate.
func (s *Server) config(user string, groups ...string) (*rest.Config, error) {
	cert, key, err := s.pki.client(user, groups)
	if err != nil {
		return nil, err
	}
	return &rest.Config{
		Host:            s.url,
		TLSClientConfig: rest.TLSClientConfig{CAData: s.pki.ca, CertData: cert, KeyData: key},
		QPS:             1000, Burst: 2000,
	}, nil
}

// Kubeconfig writes config to a file that ends with the test, with one context, "test", and returns its path.
func Kubeconfig(tb testing.TB, config *rest.Config) string {
	tb.Helper()
	file := clientcmdapi.NewConfig()
	file.Clusters["test"] = &clientcmdapi.Cluster{Server: config.Host, CertificateAuthorityData: config.CAData}
	file.AuthInfos["test"] = &clientcmdapi.AuthInfo{ClientCertificateData: config.CertData, ClientKeyData: config.KeyData, Token: config.BearerToken}
	file.Contexts["test"] = &clientcmdapi.Context{Cluster: "test", AuthInfo: "test"}
	file.CurrentContext = "test"
	path := filepath.Join(tb.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*file, path); err != nil {
		tb.Fatalf("write kubeconfig: %v", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		tb.Fatal(err)
	}
	return path
}

// CreateNodes creates Nodes with their status as given, until the test ends.
func (s *Server) CreateNodes(tb testing.TB, nodes ...*corev1.Node) {
	tb.Helper()
	for _, node := range nodes {
		if err := s.createNode(node); err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() {
			cleanup(tb, "node", node.Name, s.client.CoreV1().Nodes().Delete(context.Background(), node.Name, metav1.DeleteOptions{}))
		})
	}
}

// createNode needs two requests: a create drops the status of what has a status subresource. TaintNodesByCondition taints new nodes
// as not ready, which no controller here takes away.
func (s *Server) createNode(node *corev1.Node) error {
	ctx := context.Background()
	created, err := s.client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("create node %s: %w", node.Name, err)
	}
	status := created.DeepCopy()
	status.Status = node.Status
	updated, err := s.client.CoreV1().Nodes().UpdateStatus(ctx, status, metav1.UpdateOptions{})
	if err != nil {
		return fmt.Errorf("set status of node %s: %w", node.Name, err)
	}
	updated.Spec.Taints = node.Spec.Taints
	if _, err := s.client.CoreV1().Nodes().Update(ctx, updated, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("set taints of node %s: %w", node.Name, err)
	}
	return nil
}

// Node is a Ready Linux node for tests, with nodeInfo's spelling of runtime and kubelet version.
func Node(name, runtime, kubelet string, change ...func(*corev1.Node)) *corev1.Node {
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name:        name,
			Labels:      map[string]string{corev1.LabelHostname: name, corev1.LabelOSStable: "linux", corev1.LabelArchStable: "amd64"},
			Annotations: map[string]string{},
		},
		Status: corev1.NodeStatus{
			Conditions: []corev1.NodeCondition{{
				Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady",
				LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now(),
			}},
			Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "10.0.0.1"}, {Type: corev1.NodeHostName, Address: name}},
			NodeInfo: corev1.NodeSystemInfo{
				OperatingSystem: "linux", Architecture: "amd64", OSImage: "Debian GNU/Linux 12 (bookworm)", KernelVersion: "6.1.0-18-amd64",
				ContainerRuntimeVersion: runtime, KubeletVersion: kubelet,
			},
		},
	}
	for _, c := range change {
		c(node)
	}
	return node
}

func cleanup(tb testing.TB, what, name string, err error) {
	if err != nil && !apierrors.IsNotFound(err) {
		tb.Errorf("delete %s %s: %v", what, name, err)
	}
}

// Kubectl is the path of a stock kubectl; the newest one, whatever the server's version.
func (s *Server) Kubectl(tb testing.TB) string {
	tb.Helper()
	newest := releases[len(releases)-1].build
	target, err := binary(newest, newest)
	if err != nil {
		tb.Fatal(err)
	}
	path := filepath.Join(tb.TempDir(), "kubectl")
	if err := os.Symlink(target, path); err != nil {
		tb.Fatal(err)
	}
	return path
}
