//! What an application asks of the group: any node takes it, the leader answers.

pub(crate) mod asker;
pub(crate) mod leader;
pub(crate) mod read_index;
