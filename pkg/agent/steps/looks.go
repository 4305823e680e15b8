package steps

import (
	"context"
	"errors"
	"fmt"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// look is one part of the inspection.
type look struct {
	// check is the one of protocol.HostChecks that its error is a finding of, warning that of what it warns of.
	check, warning string
	// needs are the checks of looks without whose result it tells nothing.
	needs []string
	at    func(*inspection, context.Context) error
}

// looks are in the order in which a switch takes them; it refuses with the first error.
func looks() []look {
	kubelet, docker := []string{protocol.CheckKubelet}, []string{protocol.CheckDocker}
	return []look{
		{protocol.CheckKubelet, protocol.CheckNote, nil, (*inspection).lookAtKubelet},
		{protocol.CheckSecondKubelet, protocol.CheckNote, nil, (*inspection).lookForOtherKubelet},
		{protocol.CheckDocker, protocol.CheckCgroupDriver, kubelet, (*inspection).lookAtDocker},
		{protocol.CheckForeign, protocol.CheckDockerUse, docker, (*inspection).lookForForeign},
		{protocol.CheckSwarm, protocol.CheckDockerUse, docker, (*inspection).lookForSwarm},
		{protocol.CheckDockerUnit, protocol.CheckNote, kubelet, (*inspection).lookAtDockerd},
		{protocol.CheckDockerConfig, protocol.CheckSettingLost, kubelet, (*inspection).lookAtDockerConfig},
		{protocol.CheckContainerd, protocol.CheckNote, kubelet, (*inspection).lookAtContainerd},
		{protocol.CheckRuntimes, protocol.CheckSettingLost, []string{protocol.CheckDockerConfig, protocol.CheckContainerd}, (*inspection).lookAtRuntimes},
		{protocol.CheckNetwork, protocol.CheckNote, kubelet, (*inspection).lookAtNetwork},
		{protocol.CheckLimits, protocol.CheckNote, []string{protocol.CheckDocker, protocol.CheckDockerConfig, protocol.CheckContainerd}, (*inspection).lookAtLimits},
		{protocol.CheckCarried, protocol.CheckContainerdFile, []string{protocol.CheckDocker, protocol.CheckDockerConfig, protocol.CheckContainerd, protocol.CheckNetwork}, (*inspection).lookAtCarried},
		{protocol.CheckUnits, protocol.CheckDependents, nil, (*inspection).lookAtUnits},
		{protocol.CheckKillMode, protocol.CheckNote, nil, (*inspection).lookAtKillMode},
		{protocol.CheckHold, protocol.CheckNote, nil, (*inspection).lookAtHolds},
		{protocol.CheckFileSystem, protocol.CheckNote, []string{protocol.CheckDockerConfig, protocol.CheckContainerd}, (*inspection).lookAtFileSystem},
		{protocol.CheckSpace, protocol.CheckNote, []string{protocol.CheckDocker, protocol.CheckContainerd}, (*inspection).lookAtSpace},
		{protocol.CheckRegistry, protocol.CheckRegistry, []string{protocol.CheckDocker, protocol.CheckDockerConfig}, (*inspection).lookAtRegistries},
		{protocol.CheckAPI, protocol.CheckAPI, kubelet, (*inspection).lookAtAPI},
		{protocol.CheckKubeletFiles, protocol.CheckLogRotation, []string{protocol.CheckDockerConfig, protocol.CheckContainerd}, (*inspection).planKubelet},
	}
}

// take takes one look; its error is a finding, too.
func (i *inspection) take(ctx context.Context, look look) error {
	i.current = look
	err := look.at(i, ctx)
	if err != nil {
		finding := protocol.Finding{Check: look.check, Message: err.Error()}
		var hinted interface {
			error
			Hint() string
		}
		if errors.As(err, &hinted) {
			finding.Hint = hinted.Hint()
		}
		if errors.Is(err, errNotKnown) {
			finding.Check = protocol.CheckMayInstall
		}
		i.findings = append(i.findings, finding)
		i.failed = append(i.failed, look.check)
	}
	return err
}

// note is for what only a plan shows.
func (i *inspection) note(check, format string, args ...any) {
	i.findings = append(i.findings, protocol.Finding{Check: check, Message: fmt.Sprintf(format, args...)})
}
