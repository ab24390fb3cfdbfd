package openvpn

// newStaticBoxes builds both directions of static key mode. The configuration
// is valid and complete.
func newStaticBoxes(s *Static, d Digest) (send, recv *cbcBox, err error) {
	spec, _ := cipherSpecOf(s.Cipher)
	if s.Cipher == CipherBlowfishCBC {
		spec.keySize = s.BlowfishBits / 8
	}
	sendHalf, recvHalf := s.Key.directed(s.Direction)
	if send, err = newCBC(spec, d, sendHalf, true); err != nil {
		return nil, nil, err
	}
	if recv, err = newCBC(spec, d, recvHalf, false); err != nil {
		return nil, nil, err
	}
	send.long, recv.long = true, true
	return send, recv, nil
}
