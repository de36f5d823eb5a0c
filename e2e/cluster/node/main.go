// One program that is a whole Kubernetes control plane and node: the first argument says which part of
// it runs, the rest are that part's own flags. One program links the shared libraries once, which makes
// the build a quarter of what seven programs take.
//
// It refuses a name that it does not know, and adds nothing to the parts.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	_ "time/tzdata" // time zones of CronJobs

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	_ "k8s.io/client-go/plugin/pkg/client/auth"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

const parts = "etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubelet, kube-proxy, kubectl"

func main() {
	// By a link of its name it is kubectl, for people and scripts.
	if name := filepath.Base(os.Args[0]); name == "kubectl" {
		run(name, os.Args)
	}
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "name the part to run: "+parts)
		os.Exit(2)
	}
	run(os.Args[1], os.Args[1:])
}

// run becomes the part called name and does not return; args start with the name.
func run(name string, args []string) {
	os.Args = args
	switch name {
	case "etcd":
		etcdmain.Main(args)
		os.Exit(0)
	case "kubectl":
		if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
			kubectlutil.CheckErr(err)
		}
		os.Exit(0)
	}
	os.Exit(cli.Run(command(name)))
}

// command is the server that is called name.
func command(name string) *cobra.Command {
	switch name {
	case "kube-apiserver":
		return apiserver.NewAPIServerCommand()
	case "kube-controller-manager":
		return controllers.NewControllerManagerCommand()
	case "kube-scheduler":
		return scheduler.NewSchedulerCommand()
	case "kubelet":
		return kubelet.NewKubeletCommand(context.Background())
	case "kube-proxy":
		return proxy.NewProxyCommand()
	}
	fmt.Fprintf(os.Stderr, "there is no part `%s`; there are %s\n", name, parts)
	os.Exit(2)
	return nil
}
