// Package v1alpha1 is every object that a command prints with -o json or -o yaml. Scripts read them: a field is not renamed, and what it means does not change.
// They are no API of the server; nothing can be created of them.
package v1alpha1

// APIVersion is that of all objects.
const APIVersion = "kubectl-runtime.dev/v1alpha1"
