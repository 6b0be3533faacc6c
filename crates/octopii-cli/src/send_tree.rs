//! `octopii send` of a directory.

use std::sync::Arc;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use octopii::{
    Address, EntryFn, EntryOutcome, Links, OctopiiRuntime, TransferError, TreeOptions, TreeProgressFn,
    TreeReport, shown_path,
};
use serde_json::{Value, json};

use crate::args::Send;
use crate::exit::{Failure, one_line};
use crate::identity::{passing_node, required};
use crate::output::{Output, bytes};
use crate::peers::{self, Peer, Peers};
use crate::stop::stop_signal;

/// Entries that were not done are shown up to this many; `--json` has more.
const SHOWN: usize = 20;

type Result<T> = std::result::Result<T, TransferError>;

pub(crate) async fn run(
    runtime: &OctopiiRuntime,
    output: &Output,
    args: Send,
) -> std::result::Result<(), Failure> {
    let identity = args.identity.identity.as_deref();
    required(&args.peers, identity)?;
    let path = std::fs::canonicalize(&args.path)
        .map_err(|e| Failure::failed(format!("{}: {e}", args.path.display())))?;
    let stop = stop_signal(false)?;
    let (node, _dir) = passing_node(runtime, octopii::bind_for(&args.peers), identity, None).await?;
    tokio::pin!(stop);
    let Peers { found, missing } = tokio::select! {
        peers = peers::find(&node, &args.peers) => peers,
        () = &mut stop => {
            node.shutdown().await;
            return Err(Failure::stopped("stopped before anything was sent"));
        }
    };
    let bars = Bars::new(*output, &found);
    let told = *output;
    let options = |peer: &Address, bar| TreeOptions {
        // Without an identity of its own the command is another node each time, and always on this machine.
        source: identity.is_none().then(|| format!("this machine's {}", path.display())),
        checksum: args.checksum,
        delete: args.delete,
        dry_run: args.dry_run,
        on_entry: args.dry_run.then(|| foretell(told, peer.clone())),
        links: if args.links { Links::Inside } else { Links::Skip },
        strict: args.strict,
        compress: args.compress,
        rate_limit: args.limit_rate,
        progress: Some(callback(bar)),
        timeout: Some(args.timeout),
        // Each attempt would tell everything again.
        retries: if args.dry_run { 0 } else { args.retries },
        ..TreeOptions::new("inbox")
    };
    let with_options = |(peer, bar): (&Peer, _)| (peer.addr, options(&peer.name, bar));
    let peers = found.iter().zip(&bars.bars).map(with_options).collect();
    let sending = node.transfer().send_tree_to_all(&path, peers);
    let results = tokio::select! {
        results = sending => results,
        () = &mut stop => {
            bars.finish();
            node.shutdown().await;
            return Err(Failure::stopped("stopped; send it again, and only what is missing travels"));
        }
    };
    bars.finish();
    for (peer, result) in found.iter().zip(&results) {
        report(*output, &peer.name, result, args.dry_run);
    }
    let mut results = results;
    for (name, error) in missing {
        let result = Err(error.into());
        report(*output, &name, &result, args.dry_run);
        results.push(result);
    }
    node.shutdown().await;
    verdict(&results)
}

fn verdict(results: &[Result<TreeReport>]) -> std::result::Result<(), Failure> {
    let undone: u64 = results.iter().flatten().map(|report| report.not_done).sum();
    let errors: Vec<_> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    match errors.len() {
        0 if undone == 0 => Ok(()),
        0 => Err(Failure::failed(format!("{undone} entries of the directory were not done"))),
        n if n == results.len() && errors.iter().all(|e| matches!(e, TransferError::Connect(_))) => {
            Err(Failure::unreachable("the directory reached nobody"))
        }
        n => Err(Failure::failed(format!("the directory did not reach {n} of {} peers", results.len()))),
    }
}

fn report(output: Output, peer: &Address, result: &Result<TreeReport>, dry_run: bool) {
    match result {
        Ok(report) => {
            for entry in report.undone.iter().take(SHOWN) {
                output.line(format_args!("{peer}  not done: {entry}"));
            }
            if report.not_done > SHOWN as u64 {
                output.line(format_args!("{peer}  and {} more", report.not_done - SHOWN as u64));
            }
            output.result(line(peer, report, dry_run), &object(peer, report, dry_run));
        }
        Err(error) => {
            let error = error.to_string();
            let value = json!({ "peer": peer, "success": false, "error": error });
            output.result(format_args!("{peer}  failed: {}", one_line(&error)), &value);
        }
    }
}

/// Tells of each entry what would be done with it.
fn foretell(output: Output, peer: Address) -> EntryFn {
    Arc::new(move |path, outcome| {
        let path = shown_path(path);
        let (what, size) = match outcome {
            EntryOutcome::Stored { bytes } => ("send", *bytes),
            EntryOutcome::Removed => ("remove", 0),
            EntryOutcome::Directory | EntryOutcome::Unchanged | EntryOutcome::NotDone(_) => return,
        };
        let object = json!({ "peer": peer, "would": what, "path": path, "bytes": size });
        output.result(format_args!("{peer}  would {what} {path}"), &object);
    })
}

fn line(peer: &Address, report: &TreeReport, dry_run: bool) -> String {
    let name = shown_path(&report.name);
    let (stored, sent) = (report.stored, bytes(report.stored_bytes));
    let TreeReport { unchanged, directories, not_done, duration, .. } = report;
    if dry_run {
        return format!(
            "{peer}  {name}: {stored} files would be sent ({sent}), {unchanged} are unchanged, {} would be removed, \
             {not_done} cannot be done; nothing was",
            report.removed
        );
    }
    let sent = match report.travelled + report.resumed_bytes < report.stored_bytes && report.travelled > 0 {
        true => format!("{sent}, {} travelled", bytes(report.travelled)),
        false => sent,
    };
    let before = match report.retries {
        0 => String::new(),
        n => format!(" ({} of them sent before the connection was lost {n} times)", report.stored_before),
    };
    let removed = match (report.removed, report.removed_before) {
        (0, 0) => String::new(),
        (n, 0) => format!(", {n} removed"),
        (n, earlier) => {
            format!(", {} removed ({earlier} of them before the connection was lost)", n + earlier)
        }
    };
    format!(
        "{peer}  {name}: {stored} files sent ({sent}), {unchanged} unchanged{before}, {not_done} not done, \
         {directories} directories{removed}, in {duration:.2?}, durable"
    )
}

fn object(peer: &Address, report: &TreeReport, dry_run: bool) -> Value {
    let undone = report.undone.iter().map(|entry| {
        json!({
            "path": shown_path(&entry.path),
            "reason": entry.why.failure.to_string(),
            "message": entry.why.message,
        })
    });
    json!({
        "peer": peer,
        "success": report.is_complete(),
        "dry_run": dry_run,
        "name": shown_path(&report.name),
        "stored": report.stored,
        "bytes": report.stored_bytes,
        "travelled": report.travelled,
        "resumed_bytes": report.resumed_bytes,
        "unchanged": report.unchanged,
        "retries": report.retries,
        "stored_before": report.stored_before,
        "bytes_before": report.bytes_before,
        "removed_before": report.removed_before,
        "directories": report.directories,
        "removed": report.removed,
        "not_done": report.not_done,
        "undone": undone.collect::<Vec<_>>(),
        "manifest_sha256": report.manifest.to_string(),
        "seconds": report.duration.as_secs_f64(),
        "error": null,
    })
}

/// One bar per peer; none where nobody watches.
struct Bars {
    bars: Vec<ProgressBar>,
}

impl Bars {
    fn new(output: Output, peers: &[Peer]) -> Self {
        let target =
            if output.interactive() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let all = MultiProgress::with_draw_target(target);
        let style = ProgressStyle::with_template(
            "{prefix:>21} [{bar:30}] {bytes:>11}/{total_bytes} {binary_bytes_per_sec:>13} {msg}",
        )
        .expect("the template is well formed")
        .progress_chars("=> ");
        let bar = |peer: &Peer| {
            all.add(ProgressBar::new(0).with_style(style.clone()).with_prefix(peer.name.to_string()))
        };
        Self { bars: peers.iter().map(bar).collect() }
    }

    /// Leaves the bars as they are: whoever did not get everything must not look as if they had.
    fn finish(&self) {
        self.bars.iter().for_each(ProgressBar::abandon);
    }
}

fn callback(bar: &ProgressBar) -> TreeProgressFn {
    let bar = bar.clone();
    Arc::new(move |now| {
        bar.set_length(now.found_bytes);
        bar.set_position(now.settled_bytes);
        let more = if now.complete { "" } else { "+" };
        bar.set_message(format!("{}/{}{more} files", now.settled, now.found));
    })
}
