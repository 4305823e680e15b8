package redact

import (
	"regexp"
	"strings"
)

var (
	// host is what follows a user in a URL.
	host = regexp.MustCompile(`^(?:[\w.-]+|\[[0-9a-fA-F:.]+\]|tcp\(|unix\()`)
	// proxyUser is a proxy's without a scheme, and anyUser one whose password is plain.
	proxyUser = regexp.MustCompile(`(?i)(proxy\\*["']?\s*[:=]\s*\\*["']?(?://)?)[^\s"'\\:/]+:[^\s"'\\]*@`)
	anyUser   = regexp.MustCompile(`((?:^|[\s"'=,(/]))[A-Za-z0-9_.%+-]+:[^\s"'@/\\]+@[\w.(-]+`)
	port      = regexp.MustCompile(`^\d{1,5}(?:[/?#]|$)`)
)

// maxUser and maxAts bound how far the end of user and password is looked for, in bytes, and how many @ are tried: whoever writes a line may
// mean to keep its reader busy. Tokens of cloud registries have up to 3 KB.
const maxUser, maxAts = 4 << 10, 8

// redactUsers takes user and password out of URLs, and of what is one but for its scheme. Digests of images come behind an @, too.
func redactUsers(line string) string {
	var out strings.Builder
	for {
		before, rest, found := strings.Cut(line, "://")
		out.WriteString(before)
		if !found {
			break
		}
		out.WriteString("://")
		at := userEnd(rest, strings.LastIndexAny(before, `"'`))
		if at > 0 {
			out.WriteString(Mark)
		}
		line = rest[at:]
	}
	line = proxyUser.ReplaceAllString(out.String(), "${1}"+Mark+"@")
	return anyUser.ReplaceAllStringFunc(line, func(found string) string {
		lead := anyUser.FindStringSubmatch(found)[1]
		user, at, _ := strings.Cut(found[len(lead):], "@")
		if strings.HasPrefix(at, "sha256") || strings.HasPrefix(at, "sha512") || strings.Trim(user, "0123456789abcdef:.") == "" {
			return found
		}
		return lead + Mark + "@" + at
	})
}

// userEnd is the index of the @ behind user and password at the beginning of a URL without its scheme; 0 if it has none. Passwords that are
// not encoded may hold an @ and a slash, and in quotes a blank. Quoted is the index of the last quote before the URL, or -1.
func userEnd(url string, quoted int) int {
	if len(url) > maxUser {
		url = url[:maxUser]
	}
	end := strings.IndexAny(url, " \t\"'\\<>`")
	if end < 0 {
		end = len(url)
	}
	if quoted >= 0 && !strings.Contains(url[:end], "@") {
		if end = strings.IndexAny(url, `"'\`); end < 0 {
			end = len(url)
		}
	}
	url = url[:end]
	for at, tries := strings.LastIndexByte(url, '@'), 0; at > 0 && tries < maxAts; at, tries = strings.LastIndexByte(url[:at], '@'), tries+1 {
		behind := url[at+1:]
		if !host.MatchString(behind) || strings.HasPrefix(behind, "sha256:") || strings.HasPrefix(behind, "sha512:") {
			continue
		}
		slash := strings.IndexAny(url[:at], "/ ")
		if slash < 0 {
			return at
		}
		// A slash belongs to the password if no port is before it.
		_, password, hasPassword := strings.Cut(url[:at], ":")
		if colon := strings.IndexByte(url, ':'); hasPassword && colon < slash && !port.MatchString(password) {
			return at
		}
	}
	return 0
}
