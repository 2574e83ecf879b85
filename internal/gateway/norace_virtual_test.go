//go:build synctests && !race

package gateway

// defaultSeeds is what `make test` runs: some 15 processor seconds.
const defaultSeeds = 40
