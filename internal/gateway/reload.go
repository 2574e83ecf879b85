package gateway

import (
	"strings"

	"github.com/postern-dev/postern/internal/config"
)

// Reload puts the subscriptions of a configuration that was read anew in force:
// those that are new begin, those that changed or are gone end, and the others
// are not disturbed. Everything else needs a restart, which is said. A
// configuration that is wrong never comes here: the last good one stands.
func (g *Gateway) Reload(next config.Config) error {
	if names := g.config.NeedRestart(next); len(names) > 0 {
		g.log.Warn("these settings changed and need a restart; they stay as they were", "settings", strings.Join(names, ", "))
	}
	if err := g.registry.SetFile(next.Subscriptions); err != nil {
		return err
	}
	g.log.Info("configuration read anew", "subscriptions", len(next.Subscriptions))
	return nil
}
