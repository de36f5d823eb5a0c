//! The tools for files: a name becomes a handle, the handle's place is judged, and the handle is used.

use std::{os::unix::fs::DirBuilderExt as _, path::Path, sync::Arc};

use aegis_core::Digest;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use super::{
    answer::Answer,
    catalogue::{EditFile, ListDirectory, ReadFile, WriteFile},
    daemon::{Connection, Question},
    policies::View,
    server::{Setup, Stop},
    tree::{Name, Place, Root, Slot, TreeError},
};

/// What a name is resolved in.
enum Within {
    /// The workspace, or this agent's own memory.
    Folder(Arc<Root>),
    /// The policies that the agent is governed by.
    Policies(View),
}

/// How policies see what is meant, and what is there, or why nothing is.
struct Meant<T> {
    judged: String,
    there: Result<T, TreeError>,
}

impl<T> Meant<T> {
    /// What the tree refuses is not asked for; what is merely not there is judged by its name.
    fn new(
        root: &Root,
        name: &Name,
        there: Result<T, TreeError>,
        judged: impl FnOnce(&T) -> &str,
    ) -> Result<Self, Stop> {
        match there {
            Ok(there) => Ok(Self { judged: judged(&there).to_owned(), there: Ok(there) }),
            Err(error) if error.is_refusal() => Err(error.into()),
            Err(error) => Ok(Self { judged: root.judged(name)?, there: Err(error) }),
        }
    }
}

impl Setup {
    pub(super) async fn read_file(
        &self,
        call: &ReadFile,
        gone: &CancellationToken,
    ) -> Result<Answer, Stop> {
        let (connection, within, name) = self.place(&call.path).await?;
        let arguments = json!({ "path": call.path });
        match within {
            Within::Policies(view) => {
                let question = file(false, View::judged(&name), arguments);
                let act = async { answer(view.read(&name)) };
                self.govern(connection, &question, gone, act).await
            }
            Within::Folder(root) => {
                let meant = Meant::new(&root, &name, root.find(&name), |found| &found.judged)?;
                let question = file(false, meant.judged, arguments);
                let act = async { answer(meant.there.and_then(|found| found.read())) };
                self.govern(connection, &question, gone, act).await
            }
        }
    }

    pub(super) async fn list_directory(
        &self,
        call: &ListDirectory,
        gone: &CancellationToken,
    ) -> Result<Answer, Stop> {
        let (connection, within, name) = self.place(&call.path).await?;
        let arguments = json!({ "path": call.path, "list": true });
        let lines = |entries: Vec<String>| entries.join("\n");
        match within {
            Within::Policies(view) => {
                let question = file(false, View::judged(&name), arguments);
                let act = async { answer(view.list(&name).map(lines)) };
                self.govern(connection, &question, gone, act).await
            }
            Within::Folder(root) => {
                let meant = Meant::new(&root, &name, root.find(&name), |found| &found.judged)?;
                let question = file(false, meant.judged, arguments);
                let act = async { answer(meant.there.and_then(|found| found.list()).map(lines)) };
                self.govern(connection, &question, gone, act).await
            }
        }
    }

    pub(super) async fn write_file(
        &self,
        call: WriteFile,
        gone: &CancellationToken,
    ) -> Result<Answer, Stop> {
        let (connection, root, name) = self.writable(&call.path).await?;
        let meant = Meant::new(&root, &name, root.slot(&name), |slot| &slot.judged)?;
        let arguments = json!({ "path": call.path, "content": call.content });
        let question = file(true, meant.judged, arguments);
        let write = |slot: Slot| slot.write(call.content.as_bytes()).map(|()| "written");
        let act = async { answer(meant.there.and_then(write)) };
        self.govern(connection, &question, gone, act).await
    }

    pub(super) async fn edit_file(
        &self,
        call: EditFile,
        gone: &CancellationToken,
    ) -> Result<Answer, Stop> {
        let (connection, root, name) = self.writable(&call.path).await?;
        let meant = Meant::new(&root, &name, root.slot(&name), |slot| &slot.judged)?;
        let arguments = json!({
            "path": call.path, "old_text": call.old_text, "new_text": call.new_text,
        });
        let question = file(true, meant.judged, arguments);
        let act = async {
            match meant.there {
                Ok(slot) => edited(&slot, &call),
                Err(error) => Answer::failed(error),
            }
        };
        self.govern(connection, &question, gone, act).await
    }

    /// Where a path leads, over a connection on which to ask about it.
    async fn place(&self, path: &str) -> Result<(Connection, Within, Name), Stop> {
        let (place, name) = Place::of(path)?;
        let mut connection = self.daemon.connect().await?;
        let within = match place {
            Place::Workspace => Within::Folder(Arc::clone(&self.workspace)),
            Place::Memory => {
                let agent = connection.caller().await?.agent;
                Within::Folder(Arc::new(memory(&self.memory, &agent)?))
            }
            Place::Policy => Within::Policies(View::new(connection.policies().await?)),
        };
        Ok((connection, within, name))
    }

    async fn writable(&self, path: &str) -> Result<(Connection, Arc<Root>, Name), Stop> {
        match self.place(path).await? {
            (connection, Within::Folder(root), name) => Ok((connection, root, name)),
            (_, Within::Policies(_), _) => Err(TreeError::ReadOnly.into()),
        }
    }
}

/// An agent's memory, for its user alone.
fn memory(all: &Path, agent: &str) -> Result<Root, TreeError> {
    let name = Digest::of(agent.as_bytes()).to_string().replace(':', "-");
    let folder = all.join(name);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
    Root::open(&folder, Some(Place::Memory.as_str()))
}

fn file(write: bool, judged: String, arguments: Value) -> Question {
    let method = if write { "file.write" } else { "file.read" };
    let arguments = match arguments {
        Value::Object(arguments) => arguments,
        _ => Map::new(),
    };
    Question { method, on: "file", id: judged, arguments }
}

fn edited(slot: &Slot, call: &EditFile) -> Answer {
    let before = match slot.read() {
        Ok(before) => before,
        Err(error) => return Answer::failed(error),
    };
    let mut pieces = before.split(call.old_text.as_str());
    let (Some(head), Some(tail), None) = (pieces.next(), pieces.next(), pieces.next()) else {
        return Answer::failed(
            "`old_text` must stand in the file exactly once; read the file, and give more of what is around it",
        );
    };
    let after = format!("{head}{}{tail}", call.new_text);
    answer(slot.write(after.as_bytes()).map(|()| "changed"))
}

fn answer(done: Result<impl Into<String>, TreeError>) -> Answer {
    match done {
        Ok(text) => Answer::done(text),
        Err(error) => Answer::failed(error),
    }
}
