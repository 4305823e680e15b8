package redact

import (
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// keyHints are in each line, in lower case, that holds a key of a secret.
var keyHints = []string{"pass", "pwd", "secret", "token", "key", "auth", "cred", "pin", "sig", "psk", "jwt", "otp", "docker"}

var (
	// secretWords make a key that of a secret, and so do words that end in one of secretEnds.
	secretWords = strings.Fields("password passwd passphrase pwd pass secret token credential credentials cred creds auth authz authorization " +
		"apikey pin psk jwt otp dockerconfigjson dockercfg htpasswd")
	secretEnds = strings.Fields("password passwd passphrase pwd token secret credential credentials apikey secretkey accesskey privatekey " +
		"encryptionkey accountkey sharedkey authkey masterkey signingkey tlskey")
	// keyWords do so before "key".
	keyWords = strings.Fields("api access secret private signing encryption decryption license licence account shared storage master session ssh tls " +
		"client server deploy service subscription auth hmac aes cipher unseal recovery ca")
	// passWords end in "pass" and have nothing to do with passwords.
	passWords = strings.Fields("bypass compass surpass trespass overpass underpass")
	// plainWords say that a key is about a secret and does not hold it.
	plainWords = strings.Fields("file files path paths dir directory name names ref refs ttl expiration expiry expires expire timeout duration interval " +
		"length len size count limit type mode enabled enable disabled policy url uri endpoint endpoints server address host port version algorithm alg " +
		"helper helpers store stores provider providers plugin plugins webhook cache kind namespace issuer audience audiences request requests review " +
		"reviews config manager management volume volumes mount mounts driver controller user username ca cert certificate stdin method scope scopes " +
		"realm usage lookup cleaner index fingerprint")
	// queryWords hold a secret in a query alone.
	queryWords = strings.Fields("sig signature key code")
)

// isSecret reports whether a key is that of a secret: DB_PASSWORD, registryToken, s3.secretKey; but not token_ttl or tls-private-key-file.
func isSecret(key string) bool {
	words := wordsOf(key)
	found := false
	for i, word := range words {
		switch {
		case isSecretWord(word) && !(i > 0 && words[i-1] == "pull"): // a pull secret is a name
			found = true
		case word == "key" && i > 0 && slices.Contains(keyWords, words[i-1]):
			found = true
		case found && slices.Contains(plainWords, word):
			found = false
		}
	}
	return found
}

func isSecretWord(word string) bool {
	return slices.Contains(secretWords, word) ||
		slices.ContainsFunc(secretEnds, func(end string) bool { return strings.HasSuffix(word, end) }) ||
		strings.HasSuffix(word, "pass") && !slices.Contains(passWords, word)
}

// wordsOf splits a key into its words, in lower case.
func wordsOf(key string) []string {
	var words []string
	for part := range strings.FieldsFuncSeq(key, func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) }) {
		begin := 0
		runes := []rune(part)
		for i := 1; i < len(runes); i++ {
			starts := unicode.IsUpper(runes[i]) && (!unicode.IsUpper(runes[i-1]) || i+1 < len(runes) && unicode.IsLower(runes[i+1]))
			if starts {
				words = append(words, strings.ToLower(string(runes[begin:i])))
				begin = i
			}
		}
		words = append(words, strings.ToLower(string(runes[begin:])))
	}
	return words
}

// keyed is a key with what separates it from its value; JSON inside of JSON strings has its quotes escaped.
var keyed = regexp.MustCompile(`([A-Za-z_][\w.-]*)(\\*["']?\]?\s*(?:=>|:=|[:=])[ \t]*)`)

// redactKeys takes out what follows a secret's key.
func redactKeys(line string) string {
	var out strings.Builder
	indent := len(line) - len(strings.TrimLeftFunc(line, unicode.IsSpace))
	for at := 0; ; {
		m := keyed.FindStringSubmatchIndex(line[at:])
		if m == nil {
			out.WriteString(line[at:])
			return out.String()
		}
		before, key, value := line[:at+m[2]], line[at+m[2]:at+m[3]], line[at+m[1]:]
		out.WriteString(line[at : at+m[1]])
		at += m[1]
		inQuery := strings.HasSuffix(before, "?") || strings.HasSuffix(before, "&") || strings.HasSuffix(before, ";")
		words := wordsOf(key)
		if !isSecret(key) && !(inQuery && len(words) > 0 && slices.Contains(queryWords, words[len(words)-1])) {
			continue
		}
		starts := startsLine(before[indent:])
		if isQuoted := strings.HasPrefix(line[at-m[1]+m[3]:], `"`); isQuoted && !starts && proseAhead.MatchString(value) {
			continue // of a sentence about something of that name: JSON has its values in quotes
		}
		with, n := redactValue(value, key, starts)
		out.WriteString(with)
		at += n
	}
}

var proseAhead = regexp.MustCompile(`^[a-z]+(?:[\s,.;]|$)`)

// startsLine reports whether nothing is before a key but what may begin a line of YAML, of an environment file or of a diff.
func startsLine(before string) bool {
	return slices.Contains([]string{"", "-", "+", "export", "#", ";", "set", "ENV", `"`, "'", `- "`, "- -"}, strings.TrimSpace(before))
}

// redactValue returns the replacement of the value at the beginning of a text, and its length there. A value without quotes is a word, and if it
// is that of a line's only key, the rest of the line.
func redactValue(text, key string, whole bool) (string, int) {
	if text == "" {
		return "", 0
	}
	if text[0] == '[' {
		end := strings.IndexByte(text, ']')
		if end < 0 {
			end = len(text)
		}
		if isPlain(strings.Trim(text[1:end], " "), key) {
			return text[:end], end
		}
		return "[" + Mark, end
	}
	if text[0] == '{' {
		return "", 0
	}
	if quote := leadingQuote.FindString(text); quote != "" {
		n := quotedLength(text[len(quote):], quote)
		inner := text[len(quote) : len(quote)+n]
		if isPlain(inner, key) {
			return quote + inner, len(quote) + n
		}
		return quote + Mark, len(quote) + n
	}
	n, paired := endOfValue(text, whole)
	if isPlain(text[:n], key) || !whole && slices.Contains(secretWords, strings.TrimSuffix(text[:n], "s")) { // credentials: password "x"
		return text[:n], n
	}
	if whole && n < len(text) && (text[n] == ' ' || text[n] == '\t') {
		return Mark, len(text)
	}
	if whole {
		n = paired
	}
	n = len(strings.TrimRight(text[:n], ",;)}]"))
	if n == 0 || isPlain(text[:n], key) {
		return text[:n], n
	}
	return Mark, n
}

// endOfValue returns where a value without quotes ends, and where it does if other pairs may be behind it. Where they may be in any case, both
// are that: a line that is full of pairs would be read to its end for each.
func endOfValue(text string, whole bool) (end, paired int) {
	paired = len(text)
	if m := valueEnd.FindStringIndex(text); m != nil {
		paired = m[0]
	}
	if !whole {
		return paired, paired
	}
	if end = strings.IndexAny(text, " \t\"'\\"); end < 0 {
		end = len(text)
	}
	return end, paired
}

var (
	leadingQuote = regexp.MustCompile(`^\\*["']`)
	// valueEnd ends a value without quotes: a blank, a quote, or what begins the next pair.
	valueEnd = regexp.MustCompile(`[ \t"'\\]|[;&,][\w.-]+=|[,}\]]+\\*["']?[\w.-]+\\*["']?:|;$`)
)

// quotedLength is the length of a string whose opening quote, with its backslashes, is given; all of the text if nothing closes it.
func quotedLength(text, quote string) int {
	for at := 0; ; {
		n := strings.Index(text[at:], quote)
		if n < 0 {
			return len(text)
		}
		if at += n; len(quote) > 1 || quote == "'" || (at-len(strings.TrimRight(text[:at], `\`)))%2 == 0 {
			return at
		}
		at++
	}
}

// isPlain reports whether a value is none: empty, a switch, a reference to where the secret is.
func isPlain(value, key string) bool {
	switch strings.ToLower(value) {
	case "", "true", "false", "null", "~", "none", "nil", "yes", "no", "on", "off", "<none>", "<nil>", "{}", "[]", "|", "|-", ">", ">-", "0", strings.ToLower(Mark):
		return true
	}
	if reference.MatchString(value) {
		return true
	}
	words := wordsOf(key)
	if len(words) == 0 {
		return false
	}
	last := words[len(words)-1]
	switch {
	case strings.HasSuffix(last, "key"):
		return keyFile.MatchString(value)
	case strings.HasSuffix(last, "pwd"), last == "credentials", last == "auth":
		return strings.HasPrefix(value, "/")
	case last == "secret":
		return objectName.MatchString(value)
	}
	return false
}

var (
	reference  = regexp.MustCompile(`^(?:\$\{?\w+\}?|\$\(\w+\)|\{\{[^}]*\}\}|%\w|<[\w -]+>)$`)
	keyFile    = regexp.MustCompile(`^[\w./-]*/[\w.-]+\.(?:key|pem|crt)$`)
	objectName = regexp.MustCompile(`^[a-z0-9-]+/[a-z0-9.-]+$`) // of a Secret
)

// flagged is a flag and its value, as the next word or as the next string of a list.
var flagged = regexp.MustCompile(`((?:^|[\s"'\[,(=])--?)([A-Za-z][\w-]+)(\\*["']?(?:\s*,\s*|[ \t]+)\\*["']?)([^\s"'\\\]:=-][^\s"'\\\]]*)`)

// sentence are words behind a flag that say something of it.
var sentence = strings.Fields("is has was are and or must cannot not requires required to from in for with of should may will flag flags a the set")

func redactFlags(line string) string {
	return flagged.ReplaceAllStringFunc(line, func(found string) string {
		m := flagged.FindStringSubmatch(found)
		if !isSecret(m[2]) || slices.Contains(sentence, m[4]) || isPlain(m[4], m[2]) {
			return found
		}
		return m[1] + m[2] + m[3] + Mark
	})
}

var (
	// nameFirst and valueFirst are pairs as Kubernetes has environment variables.
	nameFirst  = regexp.MustCompile(`(?i)\b(?:name|key)\\*["']?\s*[:=]\s*\\*["']?([\w.-]+)\\*["']?\s*[,;]?\s*\\*["']?value\\*["']?\s*[:=]\s*`)
	valueFirst = regexp.MustCompile(`(?i)(\bvalue\\*["']?\s*[:=]\s*\\*["'])([^"'\\]+)(\\*["']\s*[,;]?\s*\\*["']?(?:name|key)\\*["']?\s*[:=]\s*\\*["']?)([\w.-]+)`)
)

// redactPairs takes out the values of variables that are named as those of secrets.
func redactPairs(line string) string {
	var out strings.Builder
	for at := 0; ; {
		m := nameFirst.FindStringSubmatchIndex(line[at:])
		if m == nil {
			out.WriteString(line[at:])
			break
		}
		name := line[at+m[2] : at+m[3]]
		out.WriteString(line[at : at+m[1]])
		at += m[1]
		if isSecret(name) {
			with, n := redactValue(line[at:], name, false)
			out.WriteString(with)
			at += n
		}
	}
	return valueFirst.ReplaceAllStringFunc(out.String(), func(found string) string {
		m := valueFirst.FindStringSubmatch(found)
		if !isSecret(m[4]) {
			return found
		}
		return m[1] + Mark + m[3] + m[4]
	})
}
