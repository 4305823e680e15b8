package plugin

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
)

// digestValue is a flag with a SHA-256, as sha256sum or an image's reference has it.
type digestValue string

func (d *digestValue) String() string { return string(*d) }
func (d *digestValue) Type() string   { return "string" }

func (d *digestValue) Set(text string) error {
	digest := strings.ToLower(strings.TrimPrefix(text, "sha256:"))
	if len(digest) != hex.EncodedLen(sha256.Size) || strings.Trim(digest, "0123456789abcdef") != "" {
		return errors.New("give the 64 hexadecimal digits that sha256sum prints")
	}
	*d = digestValue(digest)
	return nil
}
