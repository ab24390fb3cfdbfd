// Package deptest holds a test and nothing else: it checks who imports whom in this module, without a linter.
//
// Direct imports are read from the source files, so that every build tag and operating system counts; what package
// overlay brings into a program that embeds it is asked of the go command. The rules are those of the depguard section in
// .golangci.yml, which shows a violation in the editor; a rule is changed in both places.
package deptest
