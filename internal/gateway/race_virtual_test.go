//go:build synctests && race

package gateway

// defaultSeeds: the race detector makes each simulation some ten times as dear.
const defaultSeeds = 5
