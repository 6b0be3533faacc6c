//! How a node's directory gets its identity from a join token.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use octopii_transport::{Executor, Identity, JoinError, JoinToken};
use octopii_vfs::{Vfs, create_dir_all_durable, write_file_durable};

use crate::data_dir::{DataDirError, io_error, lock_dir, read_identity};

/// Why a node did not join.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinClusterError {
    /// The data directory cannot be used. The token has not been spent.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// No certificate.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The directory's node belongs to another cluster already.
    #[error("{dir} belongs to another cluster than the token: join into a directory of its own")]
    OtherCluster {
        /// The directory.
        dir: String,
    },
}

/// The nodes that a token names have this long to answer.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Makes sure that `identity.pem` is in the directory: the one that is there already, so that a node can be started again with
/// the same command, or one for the token. The directory is locked meanwhile, before the token is spent.
pub(crate) async fn join_into(
    executor: &Executor,
    vfs: &Arc<dyn Vfs>,
    dir: &Path,
    token: &JoinToken,
) -> Result<(), JoinClusterError> {
    let (own_vfs, own_dir) = (Arc::clone(vfs), dir.to_owned());
    let prepare = move || -> Result<_, DataDirError> {
        create_dir_all_durable(&*own_vfs, &own_dir).map_err(|source| io_error(&own_dir, source))?;
        let lock = lock_dir(&*own_vfs, &own_dir)?;
        Ok((lock, read_identity(&*own_vfs, &own_dir.join("identity.pem"))?))
    };
    let (_lock, existing) = executor.blocking(prepare).await?;
    match existing {
        Some(identity) if identity.cluster() == token.cluster() => return Ok(()),
        Some(_) => return Err(JoinClusterError::OtherCluster { dir: dir.display().to_string() }),
        None => {}
    }
    let identity = octopii_transport::join(executor, token, TIMEOUT).await?;
    let vfs = Arc::clone(vfs);
    let own = dir.join("identity.pem");
    executor.blocking(move || keep(&vfs, &own, &identity)).await?;
    Ok(())
}

/// Durable when it returns.
pub(crate) fn keep(vfs: &Arc<dyn Vfs>, path: &Path, identity: &Identity) -> Result<(), DataDirError> {
    write_file_durable(&**vfs, path, identity.to_pem().as_bytes()).map_err(|source| io_error(path, source))
}
