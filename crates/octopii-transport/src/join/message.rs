//! What a joiner and an issuing node say to each other: one frame each way.

use crate::Certified;
use crate::identity::verify;

use super::{JoinToken, TokenVerifier};

/// Version, the token's verifier, the node's public key, and a signature with each of the two keys.
pub(super) const REQUEST: usize = 1 + 32 + 32 + 64 + 64;
/// The authority's signature, a certificate and four authorities.
pub(super) const MAX_RESPONSE: usize = 1 + 64 + 5 * (2 + 4096);

const VERSION: u8 = 1;

/// Why a joiner was turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JoinRefusal {
    /// The token is not one of this node's, or the proof does not hold. Which of both is not told.
    #[error(
        "the token is not known there: it may have been revoked or made by another node; ask for a new one"
    )]
    Unknown,
    /// Another node has used it.
    #[error("the token has been used: each lets in one node, ask for another")]
    Used,
    /// Its time is over.
    #[error("the token has expired: ask for a new one, and compare the clocks of both machines")]
    Expired,
    /// The node could not carry it out now.
    #[error("the issuing node could not issue a certificate: its log says why; try again")]
    Failed,
}

impl JoinRefusal {
    const ALL: [Self; 4] = [Self::Unknown, Self::Used, Self::Expired, Self::Failed];

    fn byte(self) -> u8 {
        match self {
            Self::Unknown => 1,
            Self::Used => 2,
            Self::Expired => 3,
            Self::Failed => 4,
        }
    }
}

/// A request whose proofs hold on the connection that it came on.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) token: TokenVerifier,
    pub(super) public_key: [u8; 32],
}

/// What both keys sign: this protocol, this connection, this token, this key.
pub(super) fn statement(binding: &[u8; 32], token: &TokenVerifier, public_key: &[u8; 32]) -> Vec<u8> {
    [b"octopii join 1".as_slice(), binding, &token.0, public_key].concat()
}

pub(super) fn request(
    token: &JoinToken,
    public_key: &[u8; 32],
    node_signature: &[u8; 64],
    binding: &[u8; 32],
) -> Vec<u8> {
    let verifier = token.verifier();
    let proof = token.sign(&statement(binding, &verifier, public_key));
    [[VERSION].as_slice(), &verifier.0, public_key, node_signature, &proof].concat()
}

/// Reads a request and checks both signatures; `None` if anything is wrong with it.
pub(super) fn read_request(frame: &[u8], binding: &[u8; 32]) -> Option<Request> {
    let frame: &[u8; REQUEST] = frame.try_into().ok()?;
    let ([VERSION], rest) = frame.split_first_chunk()? else { return None };
    let (token, rest) = rest.split_first_chunk()?;
    let (public_key, rest) = rest.split_first_chunk()?;
    let (node_signature, proof) = rest.split_at_checked(64)?;
    let token = TokenVerifier(*token);
    let statement = statement(binding, &token, public_key);
    let holds = verify(public_key, &statement, node_signature) && verify(&token.0, &statement, proof);
    holds.then_some(Request { token, public_key: *public_key })
}

pub(super) fn response(outcome: &Result<Certified, JoinRefusal>) -> Vec<u8> {
    match outcome {
        Ok(certified) => [vec![0], certified.to_bytes()].concat(),
        Err(refusal) => vec![refusal.byte()],
    }
}

/// `None` if it cannot be understood.
pub(super) fn read_response(frame: &[u8]) -> Option<Result<Certified, JoinRefusal>> {
    match frame.split_first()? {
        (0, rest) => Certified::from_bytes(rest).ok().map(Ok),
        (code, []) => JoinRefusal::ALL.into_iter().find(|refusal| refusal.byte() == *code).map(Err),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::{ClusterAuthority, NodeKey, PeerRole};

    #[test]
    fn a_proof_holds_for_its_connection_its_token_and_its_key_only() {
        let authority = ClusterAuthority::generate().unwrap();
        let token = JoinToken::generate(
            authority.cluster(),
            authority.hash(),
            PeerRole::Member,
            UNIX_EPOCH,
            vec!["a:1".to_owned()],
        )
        .unwrap();
        let (key, binding) = (NodeKey::generate().unwrap(), [5; 32]);
        let signature = key.sign(&statement(&binding, &token.verifier(), &key.public())).unwrap();
        let good = request(&token, &key.public(), &signature, &binding);
        assert_eq!(good.len(), REQUEST);
        let read = read_request(&good, &binding).unwrap();
        assert_eq!((read.token, read.public_key), (token.verifier(), key.public()));
        // Passed on by someone in the middle: another connection has another binding.
        assert!(read_request(&good, &[6; 32]).is_none());
        for i in 0..good.len() {
            let mut wrong = good.clone();
            wrong[i] ^= 1;
            assert!(read_request(&wrong, &binding).is_none(), "changed at {i}");
        }
        assert!(read_request(&good[1..], &binding).is_none());
        assert!(read_request(&[&good[..], &[0]].concat(), &binding).is_none());
        // The key of somebody else, with one's own token.
        let stolen = request(&token, &NodeKey::generate().unwrap().public(), &signature, &binding);
        assert!(read_request(&stolen, &binding).is_none());
    }

    #[test]
    fn responses_survive_their_bytes() {
        let authority = ClusterAuthority::generate().unwrap();
        let certified =
            authority.certify(1, PeerRole::Member, &NodeKey::generate().unwrap().public()).unwrap();
        for outcome in JoinRefusal::ALL.into_iter().map(Err).chain([Ok(certified)]) {
            assert_eq!(read_response(&response(&outcome)), Some(outcome));
        }
        for wrong in [&[][..], &[9], &[1, 0], &[0], &[0, 1, 0, 7]] {
            assert_eq!(read_response(wrong), None, "{wrong:?}");
        }
    }
}
