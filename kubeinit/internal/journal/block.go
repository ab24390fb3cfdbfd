package journal

import "strings"

// A block is some lines of a file that others may change, too, such as
// /etc/hosts. It stands between two lines that name it.

func blockBegin(mark string) string { return "# begin of " + mark + ", written by kubeinit\n" }
func blockEnd(mark string) string   { return "# end of " + mark + "\n" }

// Block returns the text of a block with its marks. Lines end in a newline.
func Block(mark, lines string) string {
	if lines != "" && !strings.HasSuffix(lines, "\n") {
		lines += "\n"
	}
	return blockBegin(mark) + lines + blockEnd(mark)
}

// FindBlock returns the block of a mark in text, with its marks, or nothing. A
// block whose end is missing is only its first line, so that foreign lines
// below it are never taken for ours.
func FindBlock(text, mark string) string {
	before, rest, found := cutLine(text, blockBegin(mark))
	if !found {
		return ""
	}
	_, after, ended := cutLine(rest, blockEnd(mark))
	if !ended {
		return blockBegin(mark)[:min(len(blockBegin(mark)), len(text)-len(before))]
	}
	return text[len(before) : len(text)-len(after)]
}

// cutLine cuts text around the first line that is line, which may lack its
// newline at the end of text.
func cutLine(text, line string) (before, after string, found bool) {
	for at := 0; at < len(text); {
		rest := text[at:]
		if strings.HasPrefix(rest, line) {
			return text[:at], rest[len(line):], true
		}
		if rest == strings.TrimSuffix(line, "\n") {
			return text[:at], "", true
		}
		next := strings.IndexByte(rest, '\n')
		if next < 0 {
			break
		}
		at += next + 1
	}
	return text, "", false
}

// PutBlock returns text with block, as Block makes it, in the place of the old
// one or at its end. An empty block removes the old one. glued says that text
// did not end in a newline and had to get one.
func PutBlock(text, mark, block string) (out string, glued bool) {
	if old := FindBlock(text, mark); old != "" {
		at := BlockAt(text, mark)
		return text[:at] + block + text[at+len(old):], false
	}
	if block == "" {
		return text, false
	}
	if text != "" && !strings.HasSuffix(text, "\n") {
		return text + "\n" + block, true
	}
	return text + block, false
}

// BlockAt returns where the block of a mark begins, or the length of text if there
// is none.
func BlockAt(text, mark string) int {
	before, _, _ := cutLine(text, blockBegin(mark))
	return len(before)
}
