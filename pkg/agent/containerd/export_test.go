package containerd

// Handler is what tests look at of a runtime handler.
type Handler struct {
	BinaryName    string
	SystemdCgroup bool
}

// Handlers are those that containerd would have.
func (e Effective) Handlers() map[string]Handler {
	all := map[string]Handler{}
	runtimes, _ := at(e.config, "plugins", criPlugin, "containerd", "runtimes").(table)
	for name := range runtimes {
		binary, _ := at(runtimes, name, "options", "BinaryName").(string)
		systemd, _ := at(runtimes, name, "options", "SystemdCgroup").(bool)
		all[name] = Handler{BinaryName: binary, SystemdCgroup: systemd}
	}
	return all
}
