//! The `opa` program: finding it and running it. Rego is compiled by the reference implementation,
//! never by our own.

use std::{
    env, fs,
    io::{self, Read},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::OnceLock,
};

use flate2::read::GzDecoder;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{builtins, predicate::Kind};

/// How `opa test` ends when it ran, and tests failed: its output names them.
const TESTS_FAILED: i32 = 2;

/// Why `opa` was of no use.
#[derive(Debug, thiserror::Error)]
pub enum OpaError {
    /// It is not there.
    #[error(
        "the program `opa` is not installed, and Aegis compiles policies with it: run `go install github.com/open-policy-agent/opa@v1.22.2` or download it from openpolicyagent.org, then put it on the PATH or name it in AEGIS_OPA"
    )]
    Missing,
    /// AEGIS_OPA names what is not there.
    #[error(
        "AEGIS_OPA names `{0}`, and there is no such program; correct it, or unset it to search the PATH"
    )]
    Named(String),
    /// It cannot be run or answered nonsense.
    #[error("`{program}` cannot be used: {message}")]
    Broken {
        /// Its path.
        program: String,
        /// What happened.
        message: String,
    },
    /// It refused the policy.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Refused(Vec<RegoError>),
}

/// One complaint about a Rego module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegoError {
    /// What is wrong.
    pub message: String,
    /// Where, counted from 1; `None` where `opa` does not say.
    pub line: Option<u32>,
}

impl std::fmt::Display for RegoError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

/// The program.
#[derive(Debug)]
pub struct Opa {
    program: PathBuf,
    version: String,
    capabilities: OnceLock<Value>,
}

#[derive(Deserialize)]
struct Complaints {
    #[serde(default)]
    errors: Vec<Complaint>,
}

#[derive(Deserialize)]
struct Complaint {
    message: String,
    location: Option<Location>,
}

#[derive(Deserialize)]
struct Location {
    row: u32,
}

impl Opa {
    /// Finds `opa`: what AEGIS_OPA names, then on the PATH, then in Aegis' own cache folder.
    ///
    /// # Errors
    /// When there is none, or it does not run.
    pub fn locate() -> Result<Self, OpaError> {
        let named = env::var_os("AEGIS_OPA").filter(|path| !path.is_empty()).map(PathBuf::from);
        let Some(program) = named else { return Self::at(search().ok_or(OpaError::Missing)?) };
        let shown = program.display().to_string();
        Self::at(program).map_err(|error| match error {
            OpaError::Missing => OpaError::Named(shown),
            other => other,
        })
    }

    /// The `opa` at this path.
    ///
    /// # Errors
    /// When it does not run.
    pub fn at(program: impl Into<PathBuf>) -> Result<Self, OpaError> {
        let program = program.into();
        let unready = Self { program, version: String::new(), capabilities: OnceLock::new() };
        let output = unready.run(&["version"], None)?;
        let version = output
            .lines()
            .find_map(|line| line.strip_prefix("Version: "))
            .ok_or_else(|| unready.broken("it does not tell its version"))?;
        Ok(Self { version: version.trim().to_owned(), ..unready })
    }

    /// Its version, such as `1.22.2`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    fn broken(&self, message: impl Into<String>) -> OpaError {
        OpaError::Broken { program: self.program.display().to_string(), message: message.into() }
    }

    /// Runs it and gives what it printed; a failure carries its complaints.
    fn run(&self, args: &[&str], folder: Option<&Path>) -> Result<String, OpaError> {
        printed(&self.output(args, folder)?)
    }

    fn output(&self, args: &[&str], folder: Option<&Path>) -> Result<Output, OpaError> {
        let mut command = Command::new(&self.program);
        command.args(args).stdin(Stdio::null());
        if let Some(folder) = folder {
            command.current_dir(folder);
        }
        command.output().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => OpaError::Missing,
            _ => self.broken(error.to_string()),
        })
    }

    /// What policies may use: `opa`'s own capabilities without every builtin that is not
    /// deterministic or that Aegis does not answer, and with Aegis' own.
    ///
    /// # Errors
    /// When `opa` does not tell.
    pub fn capabilities(&self) -> Result<&Value, OpaError> {
        if let Some(known) = self.capabilities.get() {
            return Ok(known);
        }
        let text = self.run(&["capabilities", "--current"], None)?;
        let mut all: Value = serde_json::from_str(&text)
            .map_err(|error| self.broken(format!("its capabilities are no JSON: {error}")))?;
        let list = all
            .get_mut("builtins")
            .and_then(Value::as_array_mut)
            .ok_or_else(|| self.broken("its capabilities list no builtins"))?;
        list.retain(|builtin| {
            let name = builtin.get("name").and_then(Value::as_str).unwrap_or_default();
            let random = builtin.get("nondeterministic").and_then(Value::as_bool) == Some(true);
            !random && (builtins::is_native(name) || builtins::named(name).is_some())
        });
        for (name, _) in Kind::ALL {
            list.push(json!({
                "name": name,
                "decl": {
                    "type": "function",
                    "args": [{ "type": "string" }, { "type": "any" }],
                    "result": { "type": "boolean" },
                },
            }));
        }
        if let Some(members) = all.as_object_mut() {
            members.insert("allow_net".to_owned(), json!([]));
        }
        Ok(self.capabilities.get_or_init(|| all))
    }

    /// Checks a module strictly, with the input document's schema.
    ///
    /// # Errors
    /// What is wrong with it, with lines.
    pub fn check(&self, rego: &str) -> Result<(), OpaError> {
        let folder = self.workspace(rego)?;
        let schema = serde_json::to_vec(&crate::input_schema()).unwrap_or_default();
        self.write(folder.path(), "schema.json", &schema)?;
        self.run(
            &[
                "check",
                "-S",
                "--format",
                "json",
                "-s",
                "schema.json",
                "--capabilities",
                "capabilities.json",
                "policy.rego",
            ],
            Some(folder.path()),
        )
        .map(|_| ())
    }

    /// Parses a module into its JSON form.
    ///
    /// # Errors
    /// What is wrong with it, with lines.
    pub fn parse(&self, rego: &str) -> Result<Value, OpaError> {
        let folder = self.workspace(rego)?;
        let text = self.run(
            &["parse", "--format", "json", "--json-include", "locations,-comments", "policy.rego"],
            Some(folder.path()),
        )?;
        serde_json::from_str(&text)
            .map_err(|error| self.broken(format!("it parses into no JSON: {error}")))
    }

    /// Compiles modules into WebAssembly with these entry points.
    ///
    /// # Errors
    /// What is wrong with them, with lines.
    pub fn build(&self, modules: &[String], entrypoints: &[String]) -> Result<Vec<u8>, OpaError> {
        let folder = self.workspace("")?;
        let mut args: Vec<String> =
            ["build", "-t", "wasm", "--capabilities", "capabilities.json", "-o", "bundle.tar.gz"]
                .map(str::to_owned)
                .to_vec();
        for entrypoint in entrypoints {
            args.extend(["-e".to_owned(), entrypoint.clone()]);
        }
        for (i, module) in modules.iter().enumerate() {
            let name = format!("m{i}.rego");
            self.write(folder.path(), &name, module.as_bytes())?;
            args.push(name);
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.run(&args, Some(folder.path()))?;
        self.policy_wasm(&folder.path().join("bundle.tar.gz"))
    }

    /// Runs Rego unit tests (files) against modules (texts): whether they pass, and what it printed.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn test(&self, modules: &[&str], tests: &[PathBuf]) -> Result<(bool, String), OpaError> {
        let folder = self.workspace("")?;
        let mut args = vec!["test".to_owned(), "-v".to_owned()];
        for (i, module) in modules.iter().enumerate() {
            let name = format!("m{i}.rego");
            self.write(folder.path(), &name, module.as_bytes())?;
            args.push(name);
        }
        for test in tests {
            let absolute = fs::canonicalize(test)
                .map_err(|error| self.broken(format!("{}: {error}", test.display())))?;
            args.push(absolute.display().to_string());
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let output = self.output(&args, Some(folder.path()))?;
        if output.status.code() == Some(TESTS_FAILED) {
            return Ok((false, String::from_utf8_lossy(&output.stdout).into_owned()));
        }
        match printed(&output) {
            Ok(text) => Ok((true, text)),
            Err(refused @ OpaError::Refused(_)) => Ok((false, refused.to_string())),
            Err(other) => Err(other),
        }
    }

    fn policy_wasm(&self, bundle: &Path) -> Result<Vec<u8>, OpaError> {
        let broken = |error: io::Error| self.broken(format!("its bundle cannot be read: {error}"));
        let mut archive =
            tar::Archive::new(GzDecoder::new(fs::File::open(bundle).map_err(broken)?));
        for entry in archive.entries().map_err(broken)? {
            let mut entry = entry.map_err(broken)?;
            if entry.path().map_err(broken)?.ends_with("policy.wasm") {
                let mut wasm = Vec::new();
                entry.read_to_end(&mut wasm).map_err(broken)?;
                return Ok(wasm);
            }
        }
        Err(self.broken("its bundle holds no policy.wasm"))
    }

    /// A folder of its own for one run, with the capabilities and a module.
    fn workspace(&self, rego: &str) -> Result<tempfile::TempDir, OpaError> {
        let folder = tempfile::Builder::new()
            .prefix("aegis-policy-")
            .tempdir()
            .map_err(|error| self.broken(format!("no temporary folder can be made: {error}")))?;
        let capabilities = self.capabilities()?.to_string();
        self.write(folder.path(), "capabilities.json", capabilities.as_bytes())?;
        if !rego.is_empty() {
            self.write(folder.path(), "policy.rego", rego.as_bytes())?;
        }
        Ok(folder)
    }

    fn write(&self, folder: &Path, name: &str, bytes: &[u8]) -> Result<(), OpaError> {
        fs::write(folder.join(name), bytes)
            .map_err(|error| self.broken(format!("{name} cannot be written for it: {error}")))
    }
}

/// What it printed; where it failed, its complaints.
fn printed(output: &Output) -> Result<String, OpaError> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(OpaError::Refused(read_complaints(&text, &complaints)))
}

fn search() -> Option<PathBuf> {
    let on_path = env::var_os("PATH").into_iter().flat_map(|path| {
        env::split_paths(&path).map(|folder| folder.join("opa")).collect::<Vec<_>>()
    });
    let own = env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/aegis/bin/opa"));
    on_path.chain(own).find(|candidate| candidate.is_file())
}

/// `opa` answers in JSON on either stream, or in plain lines `file:row: message`.
fn read_complaints(stdout: &str, stderr: &str) -> Vec<RegoError> {
    for text in [stderr, stdout] {
        if let Ok(Complaints { errors }) = serde_json::from_str(text)
            && !errors.is_empty()
        {
            let tell = |c: Complaint| RegoError {
                message: c.message,
                line: c.location.map(|location| location.row),
            };
            return errors.into_iter().map(tell).collect();
        }
    }
    let text = if stderr.trim().is_empty() { stdout } else { stderr };
    let complaints: Vec<_> = text.lines().filter_map(plain_complaint).collect();
    if complaints.is_empty() {
        return vec![RegoError { message: text.trim().to_owned(), line: None }];
    }
    complaints
}

fn plain_complaint(line: &str) -> Option<RegoError> {
    let (_, rest) = line.split_once(".rego:")?;
    let (row, message) = rest.split_once(':')?;
    Some(RegoError { message: message.trim().to_owned(), line: row.trim().parse().ok() })
}
