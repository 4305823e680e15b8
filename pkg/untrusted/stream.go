package untrusted

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

// TooMuchError says that a node sent more than anything that means well.
type TooMuchError struct {
	What string
	Most int64 // bytes
}

func (e *TooMuchError) Error() string {
	return fmt.Sprintf("%s is larger than %d KiB, which no agent's is", e.What, e.Most>>10)
}

// ReadAll reads a stream to its end. One of more than most bytes is a *TooMuchError; what is its name in that.
func ReadAll(stream io.Reader, what string, most int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(stream, most+1))
	if err == nil && int64(len(data)) > most {
		return nil, &TooMuchError{What: what, Most: most}
	}
	return data, err
}

// Buffer is a writer into memory that takes at most a number of bytes; more is a *TooMuchError.
type Buffer struct {
	What string
	Most int64
	data []byte
}

func (b *Buffer) Write(p []byte) (int, error) {
	if int64(len(b.data)+len(p)) > b.Most {
		return 0, &TooMuchError{What: b.What, Most: b.Most}
	}
	b.data = append(b.data, p...)
	return len(p), nil
}

// Bytes is what was written.
func (b *Buffer) Bytes() []byte { return b.data }

// Lines calls take with each line of a stream without its end, until take returns false. The rest of a line beyond maxLine bytes is
// dropped. A stream of more than most bytes is a *TooMuchError.
func Lines(stream io.Reader, what string, maxLine int, most int64, take func(line []byte) bool) error {
	reader := bufio.NewReaderSize(io.LimitReader(stream, most+1), maxLine)
	for read := int64(0); ; {
		line, err := reader.ReadSlice('\n')
		read += int64(len(line))
		if read > most {
			return &TooMuchError{What: what, Most: most}
		}
		if err == nil {
			line = line[:len(line)-1]
		}
		if (len(line) > 0 || err == nil) && !take(line) {
			return nil
		}
		for errors.Is(err, bufio.ErrBufferFull) {
			line, err = reader.ReadSlice('\n')
			if read += int64(len(line)); read > most {
				return &TooMuchError{What: what, Most: most}
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
