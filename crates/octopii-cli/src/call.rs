//! `octopii call`.

mod fit;

use std::io::BufRead;

use octopii::{
    CallOptions, Client, Code, Encoding, METHODS, MethodInfo, OctopiiRuntime, ResponseMetadata, Responses,
    RpcClient, Sender, Status,
};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::args::Call;
use crate::exit::Failure;
use crate::identity;
use crate::output::Output;

pub(crate) async fn run(runtime: &OctopiiRuntime, output: &Output, args: Call) -> Result<(), Failure> {
    identity::required(std::slice::from_ref(&args.peer), args.identity.identity.as_deref())?;
    let identity = identity::load(args.identity.identity.as_deref(), None)?;
    let client = Client::new(runtime, &identity, [&args.peer], args.timeout).map_err(Failure::failed)?;
    let outcome = call(client.rpc(), *output, &args).await;
    client.close().await;
    outcome
}

async fn call(rpc: &RpcClient, output: Output, args: &Call) -> Result<(), Failure> {
    let begun = Instant::now();
    let listed: Result<Vec<MethodInfo>, Status> = rpc.call(&args.peer, METHODS, &(), args.timeout).await;
    let methods = listed.map_err(|status| {
        // Asking what there is changes nothing, so nothing is unknown when the answer does not come.
        if status.code.is_outcome_unknown() { Failure::unreachable(status.message) } else { status.into() }
    })?;
    let Some(name) = args.method.as_deref().filter(|_| !args.list) else {
        let wanted = |m: &&MethodInfo| args.method.as_deref().is_none_or(|name| m.name.starts_with(name));
        return methods.iter().filter(wanted).try_for_each(|method| tell(output, method));
    };
    let method = methods.iter().find(|m| m.name == name).ok_or_else(|| {
        Failure::failed(format!("{} has no method {name:?}: `octopii call --list {}`", args.peer, args.peer))
    })?;
    if !method.json {
        return Err(Failure::failed(format!(
            "{name} takes bytes, not JSON: call it from a program that knows what they mean"
        )));
    }
    let left = args.timeout.saturating_sub(begun.elapsed());
    if left.is_zero() {
        return Err(Failure::unreachable(format!("no time is left to call {name}: give more (--timeout)")));
    }
    let mut options = CallOptions::new(left).encoding(Encoding::Json);
    options.idempotent = method.idempotent;
    let received = ResponseMetadata::new();
    options.response_metadata = args.verbose.then(|| received.clone());
    let outcome = perform(rpc, output, args, method, options).await.map_err(|failed| match failed {
        Failed::Here(failure) => failure,
        Failed::There(mut status) => {
            if status.code == Code::InvalidArgument {
                status.message.push_str("; ");
                status.message.push_str(&fit::takes(method));
            }
            status.into()
        }
    });
    if args.verbose {
        // Beside a failure as well.
        output.metadata(&received.get());
    }
    outcome
}

/// Which side says why a call failed.
enum Failed {
    Here(Failure),
    There(Status),
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        Self::Here(failure)
    }
}

impl From<Status> for Failed {
    fn from(status: Status) -> Self {
        Self::There(status)
    }
}

async fn perform(
    rpc: &RpcClient,
    output: Output,
    args: &Call,
    method: &MethodInfo,
    options: CallOptions,
) -> Result<(), Failed> {
    let name = method.name.as_str();
    let request = || parse(args, method, args.request.as_deref().unwrap_or("null"));
    match (method.streams_requests, method.streams_responses) {
        (false, false) => {
            let answer: Value = rpc.call(&args.peer, name, &request()?, options).await?;
            output.value(&answer);
        }
        (false, true) => {
            let responses = rpc.server_stream(&args.peer, name, &request()?, options).await?;
            print(output, responses).await?;
        }
        (true, false) => {
            let (sender, response) =
                rpc.client_stream::<Value, Value>(&args.peer, name, options).await?.split();
            converse(output, args, method, sender, response).await?;
        }
        (true, true) => {
            let (sender, responses) = rpc.bidirectional::<Value, Value>(&args.peer, name, options).await?;
            converse(output, args, method, sender, responses).await?;
        }
    }
    Ok(())
}

/// Sends what is typed and prints what is answered. It ends with the answers, whoever still types.
async fn converse(
    output: Output,
    args: &Call,
    method: &MethodInfo,
    mut sender: Sender<Value>,
    responses: Responses<Value>,
) -> Result<(), Failed> {
    let mut lines = requests(args.request.clone());
    let sending = async {
        while let Some(line) = lines.recv().await {
            match sender.send(&parse(args, method, &line?)?).await {
                Ok(()) => {}
                // The answers tell why.
                Err(status) if status.code == Code::Cancelled => return Ok(()),
                Err(status) => return Err(status.into()),
            }
        }
        // Whether the peer still listens or not, its answers tell.
        let _ = sender.finish().await;
        Ok::<_, Failed>(())
    };
    let mut printing = std::pin::pin!(print(output, responses));
    tokio::select! {
        printed = &mut printing => printed,
        sent = sending => {
            sent?;
            printing.await
        }
    }
}

async fn print(output: Output, mut responses: Responses<Value>) -> Result<(), Failed> {
    while let Some(response) = responses.next().await {
        output.value(&response?);
        if !output.is_open() {
            break;
        }
    }
    Ok(())
}

fn parse(args: &Call, method: &MethodInfo, text: &str) -> Result<Value, Failure> {
    let typed = serde_json::from_str(text).map_err(|e| {
        let takes = fit::takes(method);
        Failure::failed(format!("the request is not JSON: {e} (text needs quotes: '\"text\"'); {takes}"))
    })?;
    if args.unchecked { Ok(typed) } else { fit::request(method, typed) }
}

/// Lines of standard input, or what was typed.
fn requests(typed: Option<String>) -> mpsc::Receiver<Result<String, Failure>> {
    let (sender, receiver) = mpsc::channel(16);
    // Reading a terminal cannot be interrupted: a thread that nobody waits for.
    std::thread::spawn(move || {
        if let Some(line) = typed {
            let _ = sender.blocking_send(Ok(line));
            return;
        }
        for line in std::io::stdin().lock().lines() {
            let line = line.map_err(|e| Failure::failed(format!("cannot read standard input: {e}")));
            if line.as_ref().is_ok_and(|line| line.trim().is_empty()) {
                continue;
            }
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

fn tell(output: Output, method: &MethodInfo) -> Result<(), Failure> {
    let (signature, types) = (method.json_signature(), method.json_types());
    let mut line = signature.clone();
    if !method.json {
        line.push_str("  [bytes only]");
    }
    for told in method.doc.lines().chain(types.iter().map(String::as_str)) {
        line.push_str("\n    ");
        line.push_str(told);
    }
    let mut value = serde_json::to_value(method).map_err(Failure::failed)?;
    value["json_signature"] = signature.into();
    value["json_types"] = types.into();
    output.result(line, &value);
    Ok(())
}
