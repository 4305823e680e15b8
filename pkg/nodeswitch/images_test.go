package nodeswitch

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// TestImagesToBring: the node's pods' images come first, and those of every kind of workload that may yet send a pod here.
func TestImagesToBring(t *testing.T) {
	s := server.Get(t)
	ctx := context.Background()
	const namespace = "images-to-bring"
	client := s.Client()
	if _, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	template := func(image string) (metav1.ObjectMeta, *metav1.LabelSelector, corev1.PodTemplateSpec) {
		labels := map[string]string{"app": image}
		return metav1.ObjectMeta{Name: image, Namespace: namespace}, &metav1.LabelSelector{MatchLabels: labels}, corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: labels},
			Spec: corev1.PodSpec{
				InitContainers: []corev1.Container{{Name: "i", Image: "init-of-" + image}},
				Containers:     []corev1.Container{{Name: "c", Image: image}},
			},
		}
	}
	meta, selector, pod := template("deployment")
	_, err := client.AppsV1().Deployments(namespace).Create(ctx, &appsv1.Deployment{ObjectMeta: meta, Spec: appsv1.DeploymentSpec{
		Replicas: ptr.To[int32](0), Selector: selector, Template: pod,
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	meta, selector, pod = template("statefulset")
	_, err = client.AppsV1().StatefulSets(namespace).Create(ctx, &appsv1.StatefulSet{ObjectMeta: meta, Spec: appsv1.StatefulSetSpec{
		Selector: selector, Template: pod,
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	meta, selector, pod = template("daemonset")
	_, err = client.AppsV1().DaemonSets(namespace).Create(ctx, &appsv1.DaemonSet{ObjectMeta: meta, Spec: appsv1.DaemonSetSpec{
		Selector: selector, Template: pod,
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	meta, _, pod = template("cronjob")
	pod.Spec.RestartPolicy = corev1.RestartPolicyNever
	s.PutCronJob(t, &batchv1.CronJob{ObjectMeta: meta, Spec: batchv1.CronJobSpec{
		Schedule: "@daily", JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{Template: pod}},
	}})

	observer := &recorder{}
	session := newRollout(s, observer).newSession("node")
	session.options.CanaryImage = "canary"
	long := corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Image: "own"}}}}
	images := session.host.imagesToBring(ctx, []corev1.Pod{long})
	for _, want := range []string{"own", "canary", "deployment", "statefulset", "daemonset", "cronjob", "init-of-deployment", "init-of-cronjob"} {
		if !slices.Contains(images, want) {
			t.Errorf("%s is missing in %v", want, images)
		}
	}
	if observer.said("brought") {
		t.Errorf("warned: %v", observer.updates)
	}

	// Names as long as any that can be pulled use up the room.
	for i := range maxImages/maxImageName + 1 {
		name := fmt.Sprintf("%04d", i)
		long.Spec.Containers = append(long.Spec.Containers, corev1.Container{Image: name + strings.Repeat("x", maxImageName-len(name))})
	}
	want := maxImages / (maxImageName + len(`"",`))
	if images := session.host.imagesToBring(ctx, []corev1.Pod{long}); len(images) != want || !observer.said(fmt.Sprintf("only %d images are brought", want)) {
		t.Errorf("%d images, want %d; updates %.500v", len(images), want, observer.updates)
	}
}

// TestImageNameTooLong: the API server takes any string as an image. One that no runtime could pull must not keep the others from the node.
func TestImageNameTooLong(t *testing.T) {
	s := server.Get(t)
	watcher := &recorder{}
	session := newRollout(s, watcher).newSession("n")
	images := session.host.imagesToBring(t.Context(), []corev1.Pod{
		{Spec: corev1.PodSpec{Containers: []corev1.Container{{Image: "registry/app:1"}}}},
		{Spec: corev1.PodSpec{Containers: []corev1.Container{{Image: "!" + strings.Repeat("x", maxImages)}}}},
	})
	if !slices.Contains(images, "registry/app:1") || slices.ContainsFunc(images, func(image string) bool { return len(image) > maxImageName }) {
		t.Errorf("images: %.200q", images)
	}
	if len(session.report.Warnings) != 1 || len(session.report.Warnings[0]) > 200 || !strings.Contains(session.report.Warnings[0], "65537 bytes") {
		t.Errorf("warnings: %.300q", session.report.Warnings)
	}
}
