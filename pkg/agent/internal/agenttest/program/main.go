// Command program is the only file of the test images: it waits, or ends at once, as the agent's own image does.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "sleep" {
		fmt.Println("sleeping")
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM)
		<-stop
		return
	}
	if len(os.Args) > 1 && os.Args[1] == "fail" {
		fmt.Println("failing")
		os.Exit(3)
	}
	fmt.Println("version test")
}
