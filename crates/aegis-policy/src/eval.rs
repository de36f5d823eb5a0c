//! Running any module that `opa build -t wasm` made: data and input in, JSON out.

use serde_json::Value;

use crate::host::{EvalError, Host, LoadError};

/// Why a module gave no result.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// It cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// It cannot be evaluated.
    #[error(transparent)]
    Eval(#[from] EvalError),
}

/// Evaluates an entry point of a module (`None`: its first) over a data document and an input, both
/// as JSON, and gives the result set: `[{"result": …}]`, or `[]` where it is undefined.
///
/// # Errors
/// When the module cannot be loaded, or the evaluation fails.
pub fn eval_module(
    host: &Host,
    wasm: &[u8],
    data: Option<&str>,
    input: Option<&str>,
    entrypoint: Option<&str>,
) -> Result<Value, ModuleError> {
    let module = host.load(wasm)?;
    let id = match entrypoint {
        None => 0,
        Some(name) => {
            let name = name.trim_matches('/');
            let known = module.entrypoints().get(name).copied();
            known.ok_or_else(|| EvalError::Entrypoint(name.to_owned()))?
        }
    };
    let mut instance = host.instantiate(&module, data.unwrap_or("{}").as_bytes())?;
    let output = instance.eval(host, id, input.unwrap_or_default().as_bytes(), <[u8]>::to_vec)?;
    serde_json::from_slice(&output).map_err(|error| EvalError::Result(error.to_string()).into())
}
