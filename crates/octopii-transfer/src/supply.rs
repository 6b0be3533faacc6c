//! Where the blocks to send come from: a source that can be read again, or a stream that cannot.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use octopii_transport::{Executor, NodeId};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use crate::buffers::Buffers;
use crate::checkpoints::Checkpoints;
use crate::digest::PrefixHasher;
use crate::options::SendOptions;
use crate::shared::Shared;
use crate::source::{Beneath, Block, BlockReader, Form, OpenSource};
use crate::wire::{self, CHECKPOINT, Have, ResumeKey, Span};
use crate::{ChunkSource, Digest, TransferError};

/// Blocks read ahead of the network. As many again are being read, a few at a time, so that a hand-over between threads is
/// paid for by several blocks.
pub(crate) const QUEUE: usize = 4;

/// Blocks of a stream that are kept after they were sent: more than are under way when one is asked for again.
const RECENT: usize = 32;

/// What a stream has given is sent after this long, be it ever so little.
const LINGER: Duration = Duration::from_millis(200);

/// A stream of bytes to send.
pub(crate) type ByteStream = Pin<Box<dyn AsyncRead + Send>>;

/// What is to be sent.
pub(crate) enum Outgoing {
    Chunk(ChunkSource),
    Beneath(Beneath),
    Stream(ByteStream),
}

/// An opened one.
pub(crate) enum Supply {
    Stored {
        source: Arc<OpenSource>,
        checkpoints: Arc<Checkpoints>,
        resume: bool,
    },
    /// Read once; the latest blocks are kept for a while.
    Stream {
        bytes: Mutex<Option<ByteStream>>,
        recent: Arc<Recent>,
    },
}

/// The latest blocks of a stream.
#[derive(Debug, Default)]
pub(crate) struct Recent(Mutex<VecDeque<Block>>);

/// Size and digest of everything that was read.
pub(crate) type Whole = (u64, Digest);

impl Outgoing {
    pub(crate) fn file_name(&self) -> Option<&str> {
        match self {
            Self::Chunk(source) => source.file_name(),
            Self::Beneath(file) => file.path.file_name()?.to_str(),
            Self::Stream(_) => None,
        }
    }
}

impl Supply {
    pub(crate) async fn open(
        shared: &Arc<Shared>,
        outgoing: Outgoing,
        options: &SendOptions,
    ) -> Result<Self, TransferError> {
        if let Outgoing::Stream(bytes) = outgoing {
            return Ok(Self::Stream { bytes: Mutex::new(Some(bytes)), recent: Arc::default() });
        }
        let (vfs, state) = (Arc::clone(&shared.resources.vfs), shared.options.state_dir.clone());
        let (resume, retries) = (options.resume, options.retries);
        let (purpose, name) = (options.purpose.clone(), options.name.clone().unwrap_or_default());
        let opening = move || {
            let source = match &outgoing {
                Outgoing::Chunk(chunk) => OpenSource::open(chunk, &vfs)?,
                Outgoing::Beneath(file) => OpenSource::beneath(file)?,
                Outgoing::Stream(_) => return Err(TransferError::Protocol("a stream is not opened")),
            };
            // Nothing of what is smaller can be gone on with, and nobody else can go on with what is in memory.
            let resume = resume && source.size() > CHECKPOINT && (source.file().is_some() || retries > 0);
            let checkpoints = match (source.file(), state) {
                (Some((target, version)), Some(dir)) if resume => {
                    Checkpoints::of_file(&*vfs, &dir, target, version, (&purpose, &name))
                }
                _ => Checkpoints::in_memory(),
            };
            let (source, checkpoints) = (Arc::new(source), Arc::new(checkpoints));
            Ok(Self::Stored { source, checkpoints, resume })
        };
        shared.executor.blocking(opening).await
    }

    /// Bytes, if they are known beforehand.
    pub(crate) fn size(&self) -> Option<u64> {
        match self {
            Self::Stored { source, .. } => Some(source.size()),
            Self::Stream { .. } => None,
        }
    }

    /// If it has holes: about how many bytes are none.
    pub(crate) fn stored(&self) -> Option<u64> {
        match self {
            Self::Stored { source, .. } => source.stored(),
            Self::Stream { .. } => None,
        }
    }

    /// Under what this receiver may keep it.
    pub(crate) fn key_at(&self, receiver: NodeId) -> Option<ResumeKey> {
        match self {
            Self::Stored { checkpoints, resume: true, .. } => Some(checkpoints.key_at(receiver)),
            _ => None,
        }
    }

    /// Whether it can be sent once more.
    pub(crate) fn is_repeatable(&self) -> bool {
        match self {
            Self::Stored { .. } => true,
            Self::Stream { bytes, .. } => bytes.lock().unwrap_or_else(PoisonError::into_inner).is_some(),
        }
    }

    /// What the receivers keep is of no use: begins again under another key.
    pub(crate) async fn renew(&mut self, executor: &Executor) {
        if let Self::Stored { checkpoints, .. } = self {
            let old = Arc::clone(checkpoints);
            *checkpoints = Arc::new(executor.blocking(move || old.renew()).await);
        }
    }

    /// Begins to read behind what the receiver has. `None` if that is not how this content begins.
    pub(crate) async fn begin(
        &mut self,
        executor: &Executor,
        have: Have,
    ) -> Result<Option<Reading>, TransferError> {
        match self {
            Self::Stored { source, checkpoints, .. } => {
                let (source, checkpoints) = (Arc::clone(source), Arc::clone(checkpoints));
                let begin = move || BlockReader::at(source, checkpoints, have.bytes);
                let reader = executor.blocking(begin).await?;
                Ok((reader.digest() == have.prefix).then_some(Reading::Stored(Box::new(reader))))
            }
            Self::Stream { bytes, recent } => {
                match bytes.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
                    Some(bytes) => Ok(Some(Reading::Stream(bytes, Arc::clone(recent)))),
                    None => Err(TransferError::Protocol("a stream can be sent only once")),
                }
            }
        }
    }

    /// A part that was sent before.
    pub(crate) async fn again(&self, executor: &Executor, span: Span) -> Result<Bytes, TransferError> {
        match self {
            Self::Stored { source, .. } => {
                let source = Arc::clone(source);
                executor.blocking(move || source.read_again(span)).await
            }
            Self::Stream { recent, .. } => recent.find(span),
        }
    }
}

/// The blocks of one attempt, in order.
pub(crate) enum Reading {
    Stored(Box<BlockReader>),
    Stream(ByteStream, Arc<Recent>),
}

impl Reading {
    /// Reads and hashes until the end, as far ahead as the queue allows.
    pub(crate) async fn run(
        self,
        executor: Executor,
        blocks: mpsc::Sender<Block>,
    ) -> Result<Whole, TransferError> {
        match self {
            Self::Stored(reader) => read_stored(executor, reader, blocks).await,
            Self::Stream(bytes, recent) => read_stream(executor, bytes, &recent, blocks).await,
        }
    }
}

async fn read_stored(
    executor: Executor,
    mut reader: Box<BlockReader>,
    blocks: mpsc::Sender<Block>,
) -> Result<Whole, TransferError> {
    loop {
        // All the room there is now, at least one block. Nobody listening means that the transfer has ended.
        let first = blocks.reserve().await.map_err(|_| TransferError::Cancelled)?;
        let others = blocks.try_reserve_many(blocks.capacity().min(QUEUE / 2));
        let permits: Vec<_> = std::iter::once(first).chain(others.into_iter().flatten()).collect();
        let wanted = permits.len();
        let read = executor
            .blocking(move || reader.next_blocks(wire::MAX_BLOCK, wanted).map(|blocks| (reader, blocks)));
        let blocks;
        (reader, blocks) = read.await?;
        let ended = blocks.len() < wanted;
        permits.into_iter().zip(blocks).for_each(|(permit, block)| permit.send(block));
        if ended {
            return Ok((reader.offset(), reader.digest()));
        }
    }
}

async fn read_stream(
    executor: Executor,
    mut bytes: ByteStream,
    recent: &Recent,
    blocks: mpsc::Sender<Block>,
) -> Result<Whole, TransferError> {
    let buffers = Arc::new(Buffers::default());
    let (mut offset, mut hasher) = (0, PrefixHasher::default());
    loop {
        let permit = blocks.reserve().await.map_err(|_| TransferError::Cancelled)?;
        let mut buffer = buffers.take(wire::MAX_BLOCK as usize);
        let (mut filled, mut until) = (0, None);
        while filled < wire::MAX_BLOCK as usize {
            let reading = bytes.read(&mut buffer.as_mut_slice()[filled..]);
            let read = match until {
                None => reading.await,
                Some(until) => timeout_at(until, reading).await.unwrap_or(Ok(0)),
            };
            match read {
                Ok(0) => break,
                Ok(n) => {
                    filled += n;
                    until = until.or_else(|| Some(Instant::now() + LINGER));
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(TransferError::Stream(Arc::new(e))),
            }
        }
        if filled == 0 {
            return Ok((offset, hasher.prefix()));
        }
        let content = buffer.freeze().slice(..filled);
        let hash = move || {
            hasher.update(&content);
            let form = Form::of(&content);
            (hasher, content, form)
        };
        let (content, form);
        (hasher, content, form) = executor.blocking(hash).await;
        let block = Block { offset, content, prefix: hasher.prefix(), form };
        offset += filled as u64;
        recent.push(block.clone());
        permit.send(block);
    }
}

impl Recent {
    fn push(&self, block: Block) {
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() == RECENT {
            recent.pop_front();
        }
        recent.push_back(block);
    }

    fn find(&self, span: Span) -> Result<Bytes, TransferError> {
        let recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = recent.iter().find(|b| b.offset == span.offset && b.content.len() == span.len as usize);
        found.map(|block| block.content.clone()).ok_or_else(|| {
            let message =
                format!("bytes from {} on were damaged, and a stream cannot be read again", span.offset);
            TransferError::DigestMismatch(message)
        })
    }
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Chunk(source) => source.fmt(f),
            Self::Beneath(file) => file.fmt(f),
            Self::Stream(_) => f.write_str("Stream(_)"),
        }
    }
}
