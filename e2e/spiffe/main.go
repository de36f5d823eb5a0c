// Command spiffe is a stock SPIFFE workload, built on go-spiffe, for the tests of the CA and of sidecars.
//
// It obeys one line of standard input at a time and answers each with one line on standard output:
// "ok …" or "error <gRPC code> …".
package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/status"
)

// patience is how long one answer may take.
const patience = 20 * time.Second

// watcher passes on every X.509 context that arrives.
type watcher struct{ updates chan *workloadapi.X509Context }

func (w watcher) OnX509ContextUpdate(c *workloadapi.X509Context) { w.updates <- c }
func (w watcher) OnX509ContextWatchError(error)                  {}

func main() {
	ctx := context.Background()
	client, err := workloadapi.New(ctx, workloadapi.WithAddr(os.Args[1]))
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	defer client.Close()
	w := watcher{make(chan *workloadapi.X509Context, 16)}
	var first *x509svid.SVID
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		command, argument, _ := strings.Cut(lines.Text(), " ")
		ctx, cancel := context.WithTimeout(ctx, patience)
		answer, err := obey(ctx, client, w, &first, command, argument)
		cancel()
		if err != nil {
			fmt.Println("error", status.Code(err), strings.ReplaceAll(err.Error(), "\n", " "))
		} else {
			fmt.Println("ok", answer)
		}
	}
}

func obey(ctx context.Context, client *workloadapi.Client, w watcher, first **x509svid.SVID, command, argument string) (string, error) {
	switch command {
	case "fetch":
		svid, err := client.FetchX509SVID(ctx)
		if err != nil {
			return "", err
		}
		bundles, err := client.FetchX509Bundles(ctx)
		if err != nil {
			return "", err
		}
		return verify(svid, bundles)
	case "jwt":
		svid, err := client.FetchJWTSVID(ctx, jwtsvid.Params{Audience: argument})
		if err != nil {
			return "", err
		}
		bundles, err := client.FetchJWTBundles(ctx)
		if err != nil {
			return "", err
		}
		local, err := jwtsvid.ParseAndValidate(svid.Marshal(), bundles, []string{argument})
		if err != nil {
			return "", err
		}
		remote, err := client.ValidateJWTSVID(ctx, svid.Marshal(), argument)
		if err != nil {
			return "", err
		}
		if local.ID != remote.ID {
			return "", fmt.Errorf("validated as %s here and as %s there", local.ID, remote.ID)
		}
		return svid.ID.String(), nil
	case "export":
		// What an application could give away: its chain and its key, in PEM.
		svid, err := client.FetchX509SVID(ctx)
		if err != nil {
			return "", err
		}
		chain, key, err := svid.Marshal()
		if err != nil {
			return "", err
		}
		return base64.StdEncoding.EncodeToString(append(chain, key...)), nil
	case "watch":
		go func() { _ = client.WatchX509Context(context.Background(), w) }()
		update, err := next(ctx, w)
		if err != nil {
			return "", err
		}
		*first = update.DefaultSVID()
		return verify(*first, update.Bundles)
	case "rotated":
		// The new SVID and the one from before the rotation must both be valid now.
		update, err := next(ctx, w)
		if err != nil {
			return "", err
		}
		if _, err := verify(*first, update.Bundles); err != nil {
			return "", fmt.Errorf("the old SVID: %w", err)
		}
		return verify(update.DefaultSVID(), update.Bundles)
	}
	return "", fmt.Errorf("unknown command %q", command)
}

func next(ctx context.Context, w watcher) (*workloadapi.X509Context, error) {
	select {
	case update := <-w.updates:
		return update, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// verify answers the SPIFFE ID, the serial number and the number of roots.
func verify(svid *x509svid.SVID, bundles *x509bundle.Set) (string, error) {
	id, _, err := x509svid.Verify(svid.Certificates, bundles)
	if err != nil {
		return "", err
	}
	bundle, err := bundles.GetX509BundleForTrustDomain(id.TrustDomain())
	if err != nil {
		return "", err
	}
	roots := len(bundle.X509Authorities())
	return fmt.Sprintf("%s %x %d", id, svid.Certificates[0].SerialNumber, roots), nil
}
