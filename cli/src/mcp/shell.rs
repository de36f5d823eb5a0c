//! `run_command`: what is run becomes certain, is judged, runs, and ends if the agent is stopped meanwhile.

use std::{path::PathBuf, time::Duration};

use aegis_api::kernel::Ended;
use serde_json::{Map, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    answer::Answer,
    catalogue::RunCommand,
    command::{self, CommandError, Cut, Ran, Run},
    daemon::{Connection, Daemon, Question},
    server::{Setup, Stop},
    tree::{Found, Name, Place, Root, TreeError},
};

/// How often the daemon is asked whether the agent is stopped.
const WATCH: Duration = Duration::from_millis(500);
/// How long a command runs on without word from the daemon: as long as that waits for its outcome.
const ALONE: Duration = Duration::from_secs(30);

pub(super) async fn run(
    setup: &Setup,
    call: RunCommand,
    gone: &CancellationToken,
) -> Result<Answer, Stop> {
    let (place, name) = Place::of(&call.directory)?;
    if place != Place::Workspace {
        return Err(TreeError::Outside.into());
    }
    let folder = folder(&setup.workspace, &name);
    if let Err(error) = &folder
        && error.is_refusal()
    {
        return Err(error.clone().into());
    }
    let judged = match &folder {
        Ok(found) => found.judged.clone(),
        Err(_) => setup.workspace.judged(&name)?,
    };
    let program = program(setup, &name, &call)?;
    let mut arguments = Map::new();
    arguments.insert("argv".into(), json!(call.command));
    arguments.insert("directory".into(), json!(judged));
    if let Ok(program) = &program {
        arguments.insert("program".into(), json!(program));
    }
    arguments.insert("timeout_seconds".into(), json!(call.timeout_seconds));
    let id = command::line(&call.command);
    let question = Question { method: "shell.exec", on: "command", id, arguments };
    let connection = setup.daemon.connect().await?;
    let act = async {
        match (folder, program) {
            (Ok(folder), Ok(program)) => execute(setup, call, &folder, program, gone).await,
            (Err(error), _) => Answer::failed(error),
            (_, Err(error)) => Answer::failed(error),
        }
    };
    setup.govern(connection, &question, gone, act).await
}

fn folder(root: &Root, name: &Name) -> Result<Found, TreeError> {
    let found = root.find(name)?;
    if found.is_folder { Ok(found) } else { Err(TreeError::Kind("a file; name a folder")) }
}

/// The program's file: of the workspace, if it is named by a relative path; else where it is named, or found.
fn program(
    setup: &Setup,
    directory: &Name,
    call: &RunCommand,
) -> Result<Result<PathBuf, CommandError>, Stop> {
    let named = call.command.first().map(String::as_str).unwrap_or_default();
    if !named.contains('/') {
        return Ok(setup.environment.program(named));
    }
    let file = if named.starts_with('/') {
        PathBuf::from(named)
    } else {
        match setup.workspace.find(&directory.then(named)?) {
            Ok(found) => PathBuf::from(found.at()),
            Err(error) if error.is_refusal() => return Err(error.into()),
            Err(_) => return Ok(Err(CommandError::Unknown)),
        }
    };
    Ok(if command::is_program(&file) { Ok(file) } else { Err(CommandError::Unknown) })
}

async fn execute(
    setup: &Setup,
    call: RunCommand,
    folder: &Found,
    program: PathBuf,
    gone: &CancellationToken,
) -> Answer {
    let leads = match folder.itself() {
        Ok(leads) => leads,
        Err(error) => return Answer::failed(error),
    };
    let run = Run {
        program,
        words: call.command,
        folder: leads,
        at: folder.at().to_owned(),
        timeout: Duration::from_secs(call.timeout_seconds),
    };
    let cut = async {
        tokio::select! {
            () = gone.cancelled() => Cut::Cancelled,
            cut = stopped(&setup.daemon) => cut,
        }
    };
    match command::run(&run, &setup.environment, cut).await {
        Ok(ran) => told(&ran, call.timeout_seconds),
        Err(error) => Answer::failed(error),
    }
}

/// Waits until the daemon says that the agent is stopped, or says nothing for too long.
async fn stopped(daemon: &Daemon) -> Cut {
    let mut heard = Instant::now();
    let mut connection: Option<Connection> = None;
    loop {
        tokio::time::sleep(WATCH).await;
        if connection.is_none() {
            connection = daemon.connect().await.ok();
        }
        match &mut connection {
            None => {}
            Some(open) => match open.caller().await {
                Ok(caller) if caller.stopped => return Cut::Stopped,
                Ok(_) => heard = Instant::now(),
                // Whom the daemon does not know any more is stopped too.
                Err(error) if error.is_refusal() => return Cut::Stopped,
                Err(_) => connection = None,
            },
        }
        if heard.elapsed() > ALONE {
            return Cut::Ungoverned;
        }
    }
}

fn told(ran: &Ran, seconds: u64) -> Answer {
    let end = match (ran.cut, ran.code) {
        (Some(Cut::Timeout), _) => format!("ended after {seconds} s, because its time was up"),
        (Some(Cut::Cancelled), _) => "ended, because the client cancelled the call".into(),
        (Some(Cut::Stopped), _) => {
            "ended by Aegis, because this agent has been stopped; ask the person whom you work for"
                .into()
        }
        (Some(Cut::Ungoverned), _) => {
            "ended, because the Aegis daemon has not been heard of; a person has to start it with `aegis up`"
                .into()
        }
        (None, Some(code)) => format!("exit code {code}"),
        (None, None) => "ended by a signal".into(),
    };
    let (stdout, stderr) = (ran.stdout.text(), ran.stderr.text());
    let mut text = String::new();
    for (name, output) in [("standard output", stdout), ("standard error", stderr)] {
        if !output.is_empty() {
            text.push_str(&format!("[{name}]\n{}\n", output.trim_end_matches('\n')));
        }
    }
    text.push_str(&format!("[{end}]"));
    let good = ran.cut.is_none() && ran.code == Some(0);
    Answer { text, ended: if good { Ended::Success } else { Ended::Failure } }
}
