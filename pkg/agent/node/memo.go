package node

import (
	"encoding/json"
	"fmt"
)

// Decode reads what a step recorded.
func Decode[M any](step string, memo json.RawMessage) (M, error) {
	var m M
	if err := json.Unmarshal(memo, &m); err != nil {
		return m, fmt.Errorf("read what step %s recorded: %w", step, err)
	}
	return m, nil
}
