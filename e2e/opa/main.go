// Command opacases compiles OPA's own test cases to WebAssembly and writes them as JSON lines, so
// that Aegis' policy host can run them and compare. OPA publishes the cases in its Go module; they
// are read from there and not copied.
//
// With -every N it takes each Nth case, so that a sample touches every area.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/test/cases"
)

const module = "github.com/open-policy-agent/opa"

// line is one compiled case. Wasm is base64; Skip says why a case has none.
type line struct {
	Note         string           `json:"note"`
	Area         string           `json:"area"`
	Skip         string           `json:"skip,omitempty"`
	Wasm         []byte           `json:"wasm,omitempty"`
	Data         *map[string]any  `json:"data,omitempty"`
	Input        *string          `json:"input,omitempty"`
	WantDefined  *bool            `json:"want_defined,omitempty"`
	WantResult   *json.RawMessage `json:"want_result,omitempty"`
	WantError    *string          `json:"want_error,omitempty"`
	StrictError  bool             `json:"strict_error,omitempty"`
	SortBindings bool             `json:"sort_bindings,omitempty"`
}

func main() {
	every := flag.Int("every", 1, "take each Nth case")
	folder := flag.String("cases", "", "folder of the cases; by default that of the OPA module in use")
	flag.Parse()
	if err := run(*every, *folder, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "opacases:", err)
		os.Exit(1)
	}
}

func run(every int, folder string, out io.Writer) error {
	if every < 1 {
		return fmt.Errorf("-every must be at least 1, not %d", every)
	}
	if folder == "" {
		dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module).Output()
		if err != nil {
			return fmt.Errorf("cannot find the module %s: %w; run this in e2e/opa or give -cases", module, err)
		}
		folder = filepath.Join(strings.TrimSpace(string(dir)), "v1/test/cases/testdata/v1")
	}
	set, err := cases.Load(folder)
	if err != nil {
		return fmt.Errorf("cannot load the cases in %s: %w", folder, err)
	}
	var chosen []cases.TestCase
	for i, tc := range set.Sorted().Cases {
		if i%every == 0 {
			chosen = append(chosen, tc)
		}
	}
	return write(chosen, out)
}

// write compiles on two goroutines and writes in order of completion: the reader does not care.
func write(chosen []cases.TestCase, out io.Writer) error {
	work := make(chan cases.TestCase)
	lines := make(chan line, 4)
	var workers sync.WaitGroup
	for range 2 {
		workers.Go(func() {
			for tc := range work {
				lines <- compile(tc)
			}
		})
	}
	go func() {
		for _, tc := range chosen {
			work <- tc
		}
		close(work)
		workers.Wait()
		close(lines)
	}()
	buffered := bufio.NewWriter(out)
	encoder := json.NewEncoder(buffered)
	encoder.SetEscapeHTML(false)
	for l := range lines {
		if err := encoder.Encode(l); err != nil {
			return err
		}
	}
	return buffered.Flush()
}

func compile(tc cases.TestCase) line {
	area, _, _ := strings.Cut(tc.Note, "/")
	l := line{
		Note:         tc.Note,
		Area:         area,
		Data:         tc.Data,
		WantDefined:  tc.WantDefined,
		StrictError:  tc.StrictError,
		SortBindings: tc.SortBindings,
	}
	if len(tc.Env) > 0 {
		l.Skip = "needs environment variables, which a module cannot see"
		return l
	}
	if tc.WantResult != nil {
		raw, err := json.Marshal(*tc.WantResult)
		if err != nil {
			l.Skip = "its expectation is not JSON"
			return l
		}
		message := json.RawMessage(raw)
		l.WantResult = &message
	}
	if tc.WantErrorCode != nil {
		l.WantError = tc.WantErrorCode
	} else if tc.WantError != nil {
		l.WantError = tc.WantError
	}
	if err := setInput(&l, tc); err != nil {
		l.Skip = err.Error()
		return l
	}
	caps := ast.CapabilitiesForThisVersion(ast.CapabilitiesExperimentalKeywords(tc.ExperimentalKeywords))
	options := []func(*rego.Rego){
		rego.Query(tc.Query),
		rego.SetRegoVersion(ast.RegoV1),
		rego.Capabilities(caps),
	}
	for i, text := range tc.Modules {
		options = append(options, rego.Module(fmt.Sprintf("module-%d.rego", i), text))
	}
	result, err := rego.New(options...).Compile(context.Background())
	if err != nil {
		l.Skip = "does not compile to WebAssembly: " + err.Error()
		return l
	}
	l.Wasm = result.Bytes
	return l
}

// setInput takes the input as Rego's text: a superset of JSON that the module itself parses.
func setInput(l *line, tc cases.TestCase) error {
	switch {
	case tc.InputTerm != nil:
		term, err := ast.ParseTerm(*tc.InputTerm)
		if err != nil {
			return fmt.Errorf("its input is no term: %w", err)
		}
		text := term.String()
		l.Input = &text
	case tc.Input != nil:
		raw, err := json.Marshal(*tc.Input)
		if err != nil {
			return fmt.Errorf("its input is not JSON: %w", err)
		}
		text := string(raw)
		l.Input = &text
	}
	return nil
}
