package overlay

import (
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strings"
	"time"
)

// Names of the state files. Those that end in .key hold secrets.
const (
	fileIdentity    = "identity.key"
	fileLink        = "link.key"
	fileWireGuard   = "wireguard.key"
	fileAuthority   = "authority.key"
	fileIssuer      = "issuer.key"
	fileGenesis     = "genesis"
	fileEpochs      = "epochs"
	fileDelegation  = "delegation"  // of the own certificate
	fileCertificate = "certificate" // the last thing that Init and Join write: with it the state is a gateway
	fileIssuing     = "issuer.delegation"
	fileSequence    = "sequence"
	fileTime        = "time"
	fileRecords     = "records"
	fileRevocations = "revocations"
	filePeers       = "peers"
	fileSeeds       = "seeds"
	fileRedeemer    = "redeemer"
)

// sequenceBlock is how many sequence numbers one fsync reserves
// (docs/protocol.md, section 2; security decision 5).
const sequenceBlock = 1024

// keys are the three key pairs of a gateway, made independently of each other.
type keys struct {
	identity  ed25519.PrivateKey
	link      *ecdh.PrivateKey
	wireguard *ecdh.PrivateKey
}

// newKeys draws fresh keys.
func newKeys() (keys, error) {
	_, identity, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return keys{}, err
	}
	link, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return keys{}, err
	}
	wg, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return keys{}, err
	}
	return keys{identity: identity, link: link, wireguard: wg}, nil
}

// files are what stores the keys.
func (k keys) files() []stateFile {
	return []stateFile{
		keyFile(fileIdentity, k.identity.Seed()),
		keyFile(fileLink, k.link.Bytes()),
		keyFile(fileWireGuard, k.wireguard.Bytes()),
	}
}

// stateFile is a name in the store and what it holds.
type stateFile struct {
	name string
	b    []byte
}

// saveFiles stores files in their order, up to the first that cannot be.
func saveFiles(store Store, files ...stateFile) error {
	for _, f := range files {
		if err := store.Save(f.name, f.b); err != nil {
			return err
		}
	}
	return nil
}

func loadKeys(store Store) (keys, error) {
	identity, err := loadSigningKey(store, fileIdentity)
	if err != nil {
		return keys{}, err
	}
	link, err := loadExchangeKey(store, fileLink)
	if err != nil {
		return keys{}, err
	}
	wg, err := loadExchangeKey(store, fileWireGuard)
	if err != nil {
		return keys{}, err
	}
	return keys{identity: identity, link: link, wireguard: wg}, nil
}

// keyFile holds 32 secret bytes as a line of base64.
func keyFile(name string, key []byte) stateFile {
	return stateFile{name, []byte(base64.StdEncoding.EncodeToString(key) + "\n")}
}

func loadKey(store Store, name string) ([]byte, error) {
	b, err := store.Load(name)
	if err != nil {
		return nil, err
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(b)))
	if err != nil || len(key) != 32 {
		return nil, fmt.Errorf("%s: want 32 bytes in base64: %w", name, ErrStateCorrupt)
	}
	return key, nil
}

func loadSigningKey(store Store, name string) (ed25519.PrivateKey, error) {
	seed, err := loadKey(store, name)
	if err != nil {
		return nil, err
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

func loadExchangeKey(store Store, name string) (*ecdh.PrivateKey, error) {
	b, err := loadKey(store, name)
	if err != nil {
		return nil, err
	}
	k, err := ecdh.X25519().NewPrivateKey(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", name, err, ErrStateCorrupt)
	}
	return k, nil
}

// saveList stores byte strings, each behind its length.
func saveList(store Store, name string, list [][]byte) error {
	return store.Save(name, encodeList(list))
}

// encodeList is what loadList reads.
func encodeList(list [][]byte) []byte {
	var b []byte
	for _, item := range list {
		b = binary.BigEndian.AppendUint32(b, uint32(len(item)))
		b = append(b, item...)
	}
	return b
}

// loadList reads what saveList wrote; a name that is not there is empty.
func loadList(store Store, name string) ([][]byte, error) {
	b, err := store.Load(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list [][]byte
	for len(b) > 0 {
		if len(b) < 4 {
			return nil, fmt.Errorf("%s: cut short: %w", name, ErrStateCorrupt)
		}
		n := int(binary.BigEndian.Uint32(b))
		b = b[4:]
		if n > len(b) {
			return nil, fmt.Errorf("%s: cut short: %w", name, ErrStateCorrupt)
		}
		list = append(list, b[:n:n])
		b = b[n:]
	}
	return list, nil
}

// saveJSON and loadJSON keep small values that people may want to read.
func saveJSON(store Store, name string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return store.Save(name, append(b, '\n'))
}

// loadJSON reads into v; a name that is not there leaves v alone.
func loadJSON(store Store, name string, v any) error {
	b, err := store.Load(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w: %w", name, err, ErrStateCorrupt)
	}
	return nil
}

// sequence hands out sequence numbers that no earlier run has used under the
// same certificate generation. A new generation begins anew: it supersedes
// whatever was signed before. It is not safe for concurrent use.
type sequence struct {
	store      Store
	generation uint64
	next       uint64 // the next to hand out
	reserved   uint64 // below this everything is reserved on disk
}

// storedSequence is what is on disk of a sequence.
type storedSequence struct {
	Generation uint64 `json:"generation"`
	Reserved   uint64 `json:"reserved"`
}

// openSequence continues after everything that an earlier run reserved.
func openSequence(store Store) (*sequence, error) {
	stored := storedSequence{Reserved: 1}
	if err := loadJSON(store, fileSequence, &stored); err != nil {
		return nil, err
	}
	if stored.Reserved == 0 || stored.Reserved > maxSequence {
		return nil, fmt.Errorf("%s: %d: %w", fileSequence, stored.Reserved, ErrStateCorrupt)
	}
	return &sequence{store: store, generation: stored.Generation, next: stored.Reserved, reserved: stored.Reserved}, nil
}

// take returns the next number for a generation, after it was reserved on disk.
func (s *sequence) take(generation uint64) (uint64, error) {
	s.enter(generation)
	if s.next >= maxSequence {
		return 0, errSequenceExhausted
	}
	if s.next >= s.reserved {
		upTo := min(s.next+sequenceBlock, maxSequence)
		if err := saveJSON(s.store, fileSequence, storedSequence{generation, upTo}); err != nil {
			return 0, err
		}
		s.reserved = upTo
	}
	n := s.next
	s.next++
	return n, nil
}

// jumpPast makes the next number of a generation larger than n: somebody speaks
// with our identity and is ahead of us, or our state was restored from a backup.
func (s *sequence) jumpPast(generation, n uint64) {
	s.enter(generation)
	if n >= s.next {
		s.next = n + 1
	}
}

// enter begins anew if the generation is another one.
func (s *sequence) enter(generation uint64) {
	if generation != s.generation {
		s.generation, s.next, s.reserved = generation, 1, 1
	}
}

// exhausted reports whether the generation has no numbers left.
func (s *sequence) exhausted(generation uint64) bool {
	return generation == s.generation && s.next >= maxSequence
}

// maxSequence is the first number that is not allowed (docs/protocol.md, section 2).
const maxSequence = 1 << 62

var errSequenceExhausted = errors.New("sequence numbers of this certificate are used up; it is being renewed")

// timeFloor is a wall clock that never runs behind what it showed before:
// max(system clock, last persisted time, beginning of the own certificate).
func timeFloor(store Store, now, notBefore time.Time) (time.Time, error) {
	var stored time.Time
	if err := loadJSON(store, fileTime, &stored); err != nil {
		return time.Time{}, err
	}
	floor := notBefore
	if stored.After(floor) {
		floor = stored
	}
	if now.After(floor) {
		return now, nil
	}
	return floor, nil
}

// storedPeer is what is worth remembering of a peer besides its record.
type storedPeer struct {
	ID     GatewayID      `json:"-"`
	Proven netip.AddrPort `json:"proven"` // where it last answered a challenge
}
