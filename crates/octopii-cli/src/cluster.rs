//! `octopii cluster`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use octopii::{
    Address, Client, ClusterAuthority, IssuedSummary, MembershipChange, NodeId, NodeStatus, OctopiiRuntime,
    PeerRole, RealVfs, RevokeRequest, Revoked, Status, create_file_durable,
};
use serde_json::json;

use crate::args::{Cluster, ClusterCommand, Target};
use crate::exit::Failure;
use crate::kv::client;
use crate::output::Output;
use crate::token::from_now;

pub(crate) async fn run(runtime: &OctopiiRuntime, output: &Output, args: Cluster) -> Result<(), Failure> {
    let change = match args.command {
        ClusterCommand::Status => return status(runtime, *output, args.target).await,
        ClusterCommand::Init { authority, operator } => return init(*output, &authority, &operator),
        ClusterCommand::Rotate { issuer } => return rotate(runtime, *output, args.target, issuer).await,
        ClusterCommand::Revoke { id, certificate, authority } => {
            let what = match (certificate, id) {
                (Some(hash), _) => Revoked::Certificate(hash),
                (None, Some(id)) => Revoked::Node(id),
                (None, None) => return Err(Failure::failed("say which node")),
            };
            return revoke(runtime, *output, args.target, what, authority.as_deref()).await;
        }
        ClusterCommand::Succeed { authority, out } => return succeed(*output, &authority, &out),
        ClusterCommand::Revoked => return revoked(runtime, *output, args.target).await,
        ClusterCommand::Issued { id } => return issued(runtime, *output, args.target, id).await,
        ClusterCommand::Issue { authority, id, role, out } => {
            return issue(*output, &authority, (id, role), &out);
        }
        ClusterCommand::Add { id, addr } => MembershipChange::Add { id, addr },
        ClusterCommand::Promote { id } => MembershipChange::Promote { id },
        ClusterCommand::Remove { id } => MembershipChange::Remove { id },
        ClusterCommand::TransferLeader { id } => MembershipChange::TransferLeader { to: id },
    };
    let client = client(runtime, args.target)?;
    let outcome = client.change_membership(&change).await;
    client.close().await;
    outcome?;
    output.result("ok", &json!({ "ok": true }));
    Ok(())
}

async fn status(runtime: &OctopiiRuntime, output: Output, target: Target) -> Result<(), Failure> {
    let client = client(runtime, target)?;
    let told = ask_everyone(&client).await;
    client.close().await;
    if told.values().all(Result::is_err) {
        let reason =
            told.into_values().find_map(Result::err).map_or_else(String::new, |status| status.message);
        return Err(Failure::unreachable(format!("no node answers: {reason}")));
    }
    output.line(format_args!(
        "{:<8} {:<21} {:<10} {:>6} {:>10} {:>10} {:>10} {:>10}",
        "NODE", "ADDRESS", "ROLE", "TERM", "LAST LOG", "COMMITTED", "APPLIED", "SNAPSHOT"
    ));
    let position = |p: Option<u64>| p.map_or_else(|| "-".to_owned(), |p| p.to_string());
    for (addr, told) in &told {
        match told {
            Ok(s) => output.result(
                format_args!(
                    "{:<8} {:<21} {:<10} {:>6} {:>10} {:>10} {:>10} {:>10}",
                    s.node_id,
                    s.addr.to_string(),
                    s.role,
                    s.term,
                    position(s.last_log),
                    position(s.committed),
                    position(s.applied),
                    position(s.snapshot)
                ),
                &json!(s),
            ),
            Err(e) => output.result(
                format_args!("{:<8} {:<21} unreachable", "?", addr.to_string()),
                &json!({ "addr": addr.to_string(), "error": e.message }),
            ),
        }
    }
    Ok(())
}

/// The addresses of all members, as the one of the nodes knows them that has seen most.
pub(crate) async fn members(runtime: &OctopiiRuntime, target: Target) -> Result<BTreeSet<Address>, Failure> {
    let client = client(runtime, target)?;
    let told = ask_everyone(&client).await;
    client.close().await;
    let mut reason = String::new();
    let mut latest: Option<NodeStatus> = None;
    for answer in told.into_values() {
        match answer {
            Ok(status) => {
                let seen = |status: &NodeStatus| (status.term, status.committed);
                if latest.as_ref().is_none_or(|latest| seen(&status) > seen(latest)) {
                    latest = Some(status);
                }
            }
            Err(status) => reason = status.message,
        }
    }
    let latest = latest.ok_or_else(|| Failure::unreachable(format!("no node answers: {reason}")))?;
    let members: BTreeSet<_> = latest.members.iter().map(|member| member.addr.clone()).collect();
    if members.is_empty() {
        return Err(Failure::failed(format!("node {} knows no members: name the peers", latest.node_id)));
    }
    Ok(members)
}

/// Far more than can agree on anything.
const MAX_ASKED: usize = 256;

/// Asks the nodes given and every member that they tell of, [`MAX_ASKED`] at most.
async fn ask_everyone(client: &Client) -> BTreeMap<Address, Result<NodeStatus, Status>> {
    let mut told: BTreeMap<Address, _> = BTreeMap::new();
    let mut waiting: BTreeSet<Address> = client.nodes().iter().cloned().collect();
    while !waiting.is_empty() {
        let asked: Vec<_> = std::mem::take(&mut waiting).into_iter().collect();
        let mut asking = tokio::task::JoinSet::new();
        for addr in asked {
            let client = client.clone();
            asking.spawn(async move {
                let told = client.status_of(&addr).await;
                (addr, told)
            });
        }
        while let Some(answer) = asking.join_next().await {
            let Ok((addr, answer)) = answer else { continue };
            if let Ok(status) = &answer {
                waiting.extend(status.members.iter().map(|member| member.addr.clone()));
            }
            told.insert(addr, answer);
        }
        waiting.retain(|addr| !told.contains_key(addr));
        // A member that makes up others would be followed without an end.
        while told.len() + waiting.len() > MAX_ASKED && waiting.pop_last().is_some() {}
    }
    // Who was asked by name and by address is one node.
    let id = |told: &Result<NodeStatus, Status>| told.as_ref().ok().map(|status| status.node_id);
    let by_address: BTreeSet<_> =
        told.iter().filter(|(addr, _)| addr.ip().is_some()).filter_map(|(_, told)| id(told)).collect();
    told.retain(|addr, told| addr.ip().is_some() || id(told).is_none_or(|id| !by_address.contains(&id)));
    told
}

fn init(output: Output, path: &Path, operator_path: &Path) -> Result<(), Failure> {
    let authority = ClusterAuthority::generate().map_err(Failure::failed)?;
    let operator = authority.issue_as(OPERATOR, PeerRole::Operator).map_err(Failure::failed)?;
    if let Some(taken) = [path, operator_path].into_iter().find(|path| path.exists()) {
        return Err(exists(taken));
    }
    write_secret(path, &authority.to_pem())?;
    write_secret(operator_path, &operator.to_pem()).inspect_err(|_| {
        // Nobody has used it yet, and the next attempt needs the name. If it stays, that attempt says so.
        let _ = std::fs::remove_file(path);
    })?;
    output.result(
        format_args!(
            "cluster {}: authority in {}, an operator's identity in {}, keep both secret",
            authority.cluster(),
            path.display(),
            operator_path.display()
        ),
        &json!({ "cluster": authority.cluster().to_string(), "authority": path, "operator": operator_path }),
    );
    Ok(())
}

/// The issuing node runs with each of the three files in turn, and every node replaces its certificate after each.
fn succeed(output: Output, authority: &Path, out: &Path) -> Result<(), Failure> {
    let old = read_authority(authority)?;
    let new = old.successor().map_err(Failure::failed)?;
    let old = old.announcing(&new).map_err(Failure::failed)?;
    let steps =
        [("announce", old.to_pem()), ("carry", new.to_pem()), ("alone", new.without_predecessors().to_pem())];
    let files: Vec<_> = steps
        .iter()
        .zip(1..)
        .map(|((step, text), n)| (out.join(format!("octopii-authority-{n}-{step}.pem")), text))
        .collect();
    if let Some((taken, _)) = files.iter().find(|(path, _)| path.exists()) {
        return Err(exists(taken));
    }
    for (path, text) in &files {
        write_secret(path, text)?;
        output.result(path.display(), &json!({ "authority": path }));
    }
    output.line(
        "run the issuing node with each in turn, and `octopii cluster rotate` for every node after each",
    );
    Ok(())
}

/// Far above those that people give to nodes, and below those of this user's local commands.
const OPERATOR: NodeId = 1 << 61;

async fn revoke(
    runtime: &OctopiiRuntime,
    output: Output,
    target: Target,
    what: Revoked,
    authority: Option<&Path>,
) -> Result<(), Failure> {
    let request = match (authority, what) {
        (Some(path), _) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            let revocation = read_authority(path)?.revoke(what, now).map_err(Failure::failed)?;
            RevokeRequest::Signed(revocation.to_bytes().to_vec())
        }
        (None, Revoked::Node(id)) => RevokeRequest::Node(id),
        (None, Revoked::Certificate(hash)) => RevokeRequest::Certificate(hash.to_string()),
    };
    let client = client(runtime, target)?;
    let outcome = client.revoke(&request).await;
    let siblings = match (&outcome, what) {
        (Ok(()), Revoked::Certificate(hash)) => siblings(&client, &hash.to_string()).await,
        _ => None,
    };
    client.close().await;
    outcome?;
    let told = siblings.as_ref().map(|(id, others)| json!({ "node": id, "certificates": others }));
    output.result("ok", &json!({ "ok": true, "still_valid": told }));
    match (siblings, what) {
        (Some((id, others)), _) if !others.is_empty() => {
            for other in &others {
                output.line(format_args!("still valid for node {id}: {}", as_line(other)));
            }
            output.line(format_args!("`octopii cluster revoke {id}` shuts out all of them, and the node for ever"));
        }
        (None, Revoked::Certificate(_)) => output.line(
            "it is not on an issuing node's record, so nobody knows here what other certificates its node has",
        ),
        _ => {}
    }
    Ok(())
}

/// The node whose certificate this is, and what else it has that is good, if an issuing node that answers has issued it.
async fn siblings(client: &Client, hash: &str) -> Option<(NodeId, Vec<IssuedSummary>)> {
    let list = client.issued(None).await.ok()?;
    let id = list.entries.iter().find(|entry| entry.certificate == hash)?.node_id;
    let good = |entry: &IssuedSummary| entry.node_id == id && entry.certificate != hash && !entry.revoked;
    Some((id, list.entries.into_iter().filter(good).collect()))
}

async fn issued(
    runtime: &OctopiiRuntime,
    output: Output,
    target: Target,
    id: Option<NodeId>,
) -> Result<(), Failure> {
    let client = client(runtime, target)?;
    let list = client.issued(id).await;
    client.close().await;
    let list = list?;
    for entry in &list.entries {
        output.result(format_args!("node {:>7}  {}", entry.node_id, as_line(entry)), &json!(entry));
    }
    if list.forgotten > 0 {
        output.line(format_args!("{} older ones are on the record no longer", list.forgotten));
    }
    Ok(())
}

fn as_line(entry: &IssuedSummary) -> String {
    let from = entry.from.as_deref().unwrap_or("this node");
    format!(
        "{}  {:<8} {:<7} {from:<21} {}{}",
        entry.certificate,
        entry.role,
        entry.by.word(),
        from_now(entry.at),
        if entry.revoked { ", revoked" } else { "" }
    )
}

async fn revoked(runtime: &OctopiiRuntime, output: Output, target: Target) -> Result<(), Failure> {
    let client = client(runtime, target)?;
    let revoked = client.revoked().await;
    client.close().await;
    for entry in revoked? {
        let line = match (&entry.node_id, &entry.certificate) {
            (Some(id), _) => format!("node {id}"),
            (None, hash) => format!("certificate {}", hash.as_deref().unwrap_or("?")),
        };
        output.result(line, &json!(entry));
    }
    Ok(())
}

async fn rotate(
    runtime: &OctopiiRuntime,
    output: Output,
    target: Target,
    issuer: Option<Address>,
) -> Result<(), Failure> {
    let client = client(runtime, target)?;
    let mut failed = None;
    for node in client.nodes() {
        match client.rotate_identity_of(node, issuer.clone()).await {
            Ok(hash) => output.result(
                format_args!("{node} has a new key; its certificate is {hash}"),
                &json!({ "addr": node.to_string(), "certificate": hash }),
            ),
            Err(status) => {
                output.line(format_args!("{node} keeps its key: {}", status.message));
                failed = Some(status);
            }
        }
    }
    client.close().await;
    failed.map_or(Ok(()), |status| Err(status.into()))
}

fn issue(
    output: Output,
    authority: &Path,
    (id, role): (NodeId, PeerRole),
    out: &Path,
) -> Result<(), Failure> {
    let authority = read_authority(authority)?;
    write_secret(out, &authority.issue_as(id, role).map_err(Failure::failed)?.to_pem())?;
    output.result(
        format_args!("identity of {role} {id} in {}, keep it secret", out.display()),
        &json!({ "node": id, "role": role.to_string(), "identity": out }),
    );
    Ok(())
}

fn read_authority(path: &Path) -> Result<ClusterAuthority, Failure> {
    octopii::read_authority(&RealVfs, path).map_err(Failure::failed)?.ok_or_else(|| {
        Failure::failed(format!("{}: no such file; make one with `octopii cluster init`", path.display()))
    })
}

fn exists(path: &Path) -> Failure {
    Failure::failed(format!(
        "{} exists and is not replaced: move it away, or name another file",
        path.display()
    ))
}

fn write_secret(path: &Path, text: &str) -> Result<(), Failure> {
    create_file_durable(&RealVfs, path, text.as_bytes()).map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => exists(path),
        _ => Failure::failed(format!("{}: {e}", path.display())),
    })
}
