// Command tlog verifies an exported Aegis audit log with Go's own implementation of signed notes
// and transparency logs, golang.org/x/mod/sumdb: nothing of Aegis is in it.
//
//	tlog DIR VERIFIER-KEY [PROOF-FILE]
//
// DIR holds checkpoint, tile/… and tile/entries/… as c2sp.org/tlog-tiles names them. It checks the
// checkpoint's signature, every entry against its leaf hash, every tile, an inclusion proof for each
// entry (a sample in long logs), a consistency proof from each earlier size (a sample too), and a
// .tlog-proof file if one is given. It prints one line of what it verified, or fails.
package main

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const tileHeight = 8

func main() {
	if len(os.Args) < 3 || len(os.Args) > 4 {
		fmt.Fprintln(os.Stderr, "usage: tlog DIR VERIFIER-KEY [PROOF-FILE]")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3:]); err != nil {
		fmt.Fprintln(os.Stderr, "tlog:", err)
		os.Exit(1)
	}
}

func run(dir, key string, proofs []string) error {
	verifier, err := note.NewVerifier(key)
	if err != nil {
		return fmt.Errorf("verifier key: %w", err)
	}
	signed, err := os.ReadFile(filepath.Join(dir, "checkpoint"))
	if err != nil {
		return err
	}
	tree, err := openCheckpoint(signed, verifier)
	if err != nil {
		return err
	}
	entries, err := readEntries(dir, tree.N)
	if err != nil {
		return err
	}
	reader := tlog.TileHashReader(tree, &dirTiles{dir: dir, size: tree.N})
	inclusions, err := checkInclusion(tree, entries, reader)
	if err != nil {
		return err
	}
	consistencies, err := checkConsistency(tree, entries, reader)
	if err != nil {
		return err
	}
	for _, path := range proofs {
		if err := checkProofFile(path, verifier, entries); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	fmt.Printf("verified %d entries, %d inclusion proofs, %d consistency proofs, %d proof files\n",
		tree.N, inclusions, consistencies, len(proofs))
	return nil
}

// openCheckpoint verifies a checkpoint, whose three lines are origin, size and root.
func openCheckpoint(signed []byte, verifier note.Verifier) (tlog.Tree, error) {
	opened, err := note.Open(signed, note.VerifierList(verifier))
	if err != nil {
		return tlog.Tree{}, fmt.Errorf("checkpoint: %w", err)
	}
	lines := strings.Split(opened.Text, "\n")
	if len(lines) != 4 || lines[0] != verifier.Name() || lines[3] != "" {
		return tlog.Tree{}, fmt.Errorf("checkpoint: not origin, size and root: %q", opened.Text)
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil {
		return tlog.Tree{}, fmt.Errorf("checkpoint size: %w", err)
	}
	root, err := tlog.ParseHash(lines[2])
	if err != nil {
		return tlog.Tree{}, fmt.Errorf("checkpoint root: %w", err)
	}
	return tlog.Tree{N: size, Hash: root}, nil
}

// bundlePath is a tile's path with "entries" for its level, of another shape than the sumdb's own.
func bundlePath(dir string, index int64, width int) string {
	tile := tlog.Tile{H: tileHeight, L: 0, N: index, W: width}
	return filepath.Join(dir, strings.Replace(tile.Path(), "tile/8/0/", "tile/entries/", 1))
}

func tilePath(dir string, tile tlog.Tile) string {
	return filepath.Join(dir, strings.Replace(tile.Path(), "tile/8/", "tile/", 1))
}

func readEntries(dir string, size int64) ([][]byte, error) {
	var entries [][]byte
	for index := int64(0); int64(len(entries)) < size; index++ {
		width := int(min(size-index*256, 256))
		data, err := os.ReadFile(bundlePath(dir, index, width))
		if err != nil {
			return nil, err
		}
		for i := 0; i < width; i++ {
			if len(data) < 2 || len(data) < 2+int(binary.BigEndian.Uint16(data)) {
				return nil, fmt.Errorf("entry bundle %d ends early", index)
			}
			end := 2 + int(binary.BigEndian.Uint16(data))
			entries = append(entries, data[2:end])
			data = data[end:]
		}
		if len(data) != 0 {
			return nil, fmt.Errorf("entry bundle %d has more than its width", index)
		}
	}
	return entries, nil
}

// step keeps the number of proofs of a long log near 500.
func step(size int64) int64 { return max(size/500, 1) }

func checkInclusion(tree tlog.Tree, entries [][]byte, reader tlog.HashReader) (int, error) {
	checked := 0
	for index := int64(0); index < tree.N; index += step(tree.N) {
		leaf := tlog.RecordHash(entries[index])
		proof, err := tlog.ProveRecord(tree.N, index, reader)
		if err != nil {
			return 0, fmt.Errorf("proving entry %d: %w", index, err)
		}
		if err := tlog.CheckRecord(proof, tree.N, tree.Hash, index, leaf); err != nil {
			return 0, fmt.Errorf("entry %d: %w", index, err)
		}
		checked++
	}
	return checked, nil
}

// checkConsistency compares with roots that are computed here, from the entries alone.
func checkConsistency(tree tlog.Tree, entries [][]byte, reader tlog.HashReader) (int, error) {
	var stored memory
	checked := 0
	for index, entry := range entries {
		hashes, err := tlog.StoredHashes(int64(index), entry, stored)
		if err != nil {
			return 0, err
		}
		stored = append(stored, hashes...)
		size := int64(index) + 1
		if size%step(tree.N) != 0 && size != tree.N {
			continue
		}
		root, err := tlog.TreeHash(size, stored)
		if err != nil {
			return 0, err
		}
		proof, err := tlog.ProveTree(tree.N, size, reader)
		if err != nil {
			return 0, fmt.Errorf("proving size %d: %w", size, err)
		}
		if err := tlog.CheckTree(proof, tree.N, tree.Hash, size, root); err != nil {
			return 0, fmt.Errorf("size %d: %w", size, err)
		}
		checked++
	}
	return checked, nil
}

func checkProofFile(path string, verifier note.Verifier, entries [][]byte) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	head, checkpoint, found := strings.Cut(string(data), "\n\n")
	lines := strings.Split(head, "\n")
	if !found || lines[0] != "c2sp.org/tlog-proof@v1" {
		return fmt.Errorf("not a tlog-proof")
	}
	lines = lines[1:]
	if strings.HasPrefix(lines[0], "extra ") {
		lines = lines[1:]
	}
	index, err := strconv.ParseInt(strings.TrimPrefix(lines[0], "index "), 10, 64)
	if err != nil || index < 0 || index >= int64(len(entries)) {
		return fmt.Errorf("index line %q", lines[0])
	}
	var proof tlog.RecordProof
	for _, line := range lines[1:] {
		hash, err := base64.StdEncoding.DecodeString(line)
		if err != nil || len(hash) != tlog.HashSize {
			return fmt.Errorf("hash line %q", line)
		}
		proof = append(proof, tlog.Hash(hash))
	}
	tree, err := openCheckpoint([]byte(checkpoint), verifier)
	if err != nil {
		return err
	}
	return tlog.CheckRecord(proof, tree.N, tree.Hash, index, tlog.RecordHash(entries[index]))
}

// memory holds the hashes of a tree in the order in which tlog stores them.
type memory []tlog.Hash

func (m memory) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	hashes := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		if index < 0 || index >= int64(len(m)) {
			return nil, fmt.Errorf("no stored hash %d", index)
		}
		hashes[i] = m[index]
	}
	return hashes, nil
}

// dirTiles reads tiles from files; the tlog package checks each against the tree.
type dirTiles struct {
	dir  string
	size int64
}

func (d *dirTiles) Height() int { return tileHeight }

func (d *dirTiles) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var out [][]byte
	for _, tile := range tiles {
		data, err := os.ReadFile(tilePath(d.dir, tile))
		if err != nil {
			return nil, err
		}
		out = append(out, data)
	}
	return out, nil
}

func (d *dirTiles) SaveTiles([]tlog.Tile, [][]byte) {}
