//! A synchronous host for modules that `opa build -t wasm` makes (OPA WebAssembly ABI 1.2).
//!
//! One call in and out for an evaluation (`opa_eval`), one long-lived instance for each evaluator
//! and module, its heap reset by a pointer. Bounded: memory, time (epochs), input and output. After
//! any failure the instance is thrown away, so that the next call starts clean.
//!
//! Refused when loaded: a module of another ABI, an import that is not OPA's, a builtin that
//! this host does not answer.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    path::Path,
    sync::Arc,
    time::Duration,
};

use wasmtime::{
    AsContext, AsContextMut, Cache, CacheConfig, Caller, Config, Engine, Extern, Linker, Memory,
    MemoryType, OptLevel, Store, Trap, TypedFunc,
};

use crate::{
    builtins::{self, Callee},
    memory,
    predicate::Patterns,
    ticker::Ticker,
};

const PAGE: u64 = 65_536;

/// What one evaluation may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Memory of one instance, in bytes.
    pub memory_bytes: u64,
    /// An instance that has grown beyond this is not kept.
    pub keep_bytes: u64,
    /// The time of one evaluation, by the wall's clock.
    pub budget: Duration,
    /// The input document.
    pub input_bytes: usize,
    /// The result.
    pub output_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: 64 << 20,
            keep_bytes: 4 << 20,
            // Wall time: on a busy machine most of it may pass while the thread does not run.
            budget: Duration::from_millis(50),
            input_bytes: 4 << 20,
            output_bytes: 64 << 10,
        }
    }
}

/// Why a module cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Not a WebAssembly module, or one that needs more than the limits give.
    #[error("not a usable WebAssembly module: {0}; build it with `opa build -t wasm`")]
    Module(String),
    /// Another ABI.
    #[error(
        "the module speaks OPA's WebAssembly ABI {0}; Aegis speaks 1.1 to 1.3: build it again with a current `opa`"
    )]
    Abi(String),
    /// It calls builtins that Aegis does not answer.
    #[error("the policy calls {}, which Aegis does not provide; only deterministic builtins are available", .0.join(", "))]
    Builtins(Vec<String>),
    /// Data that is no JSON document.
    #[error("the data document cannot be loaded: {0}")]
    Data(String),
}

/// Why an evaluation gave no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    /// The module gave up, with its message.
    #[error("the policy aborted: {0}")]
    Abort(String),
    /// Out of time.
    #[error("the policy did not finish in time")]
    Deadline,
    /// A trap: out of memory, stack, bounds.
    #[error("the policy trapped: {0}")]
    Trap(String),
    /// The input document is too large.
    #[error("the input document exceeds the policy engine's limit")]
    InputTooLarge,
    /// The result is too large.
    #[error("the policy's result exceeds the policy engine's limit")]
    OutputTooLarge,
    /// There is no such entry point.
    #[error("the module has no entry point `{0}`")]
    Entrypoint(String),
    /// A result that cannot be read.
    #[error("the policy's result cannot be read: {0}")]
    Result(String),
}

/// The message of `opa_abort`, carried through the trap.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Abort(String);

/// What an instance's host functions need.
struct State {
    env: Option<Env>,
    exports: Option<Exports>,
    callees: Arc<[Option<Callee>]>,
    patterns: Patterns,
}

/// The instance's memory and its two constants: all that a predicate needs.
#[derive(Clone, Copy)]
struct Env {
    memory: Memory,
    yes: u32,
    no: u32,
}

/// The instance's exports that put a value into its memory.
#[derive(Clone)]
struct Exports {
    malloc: TypedFunc<u32, u32>,
    parse: TypedFunc<(u32, u32), u32>,
}

/// The engine with its clock; one a process.
pub struct Host {
    engine: Engine,
    linker: Linker<State>,
    ticker: Ticker,
    limits: Limits,
}

/// A module, compiled and checked.
pub struct Module {
    module: wasmtime::Module,
    callees: Arc<[Option<Callee>]>,
    entrypoints: BTreeMap<String, i32>,
    /// Memory to start with, in pages.
    pages: u32,
}

/// `opa_eval`: reserved, entry point, data, input, input length, heap, format (0: JSON).
type EvalParams = (u32, i32, u32, u32, u32, u32, u32);

/// An instance of a module with its memory. Not shared between threads.
pub struct Instance {
    store: Store<State>,
    memory: Memory,
    eval: TypedFunc<EvalParams, u32>,
    /// Where the input is written; everything below stays.
    heap_base: u32,
    data: u32,
    /// The memory it started with.
    initial: u64,
}

// === impl Host ===

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Host {
    /// A host. Compiled code is cached in `cache`, keyed by module, engine, target and CPU, if a
    /// folder is given.
    ///
    /// # Errors
    /// When the machine has no support, or the clock's thread cannot start.
    pub fn new(limits: Limits, cache: Option<&Path>) -> Result<Self, LoadError> {
        Self::with_opt_level(limits, cache, OptLevel::Speed)
    }

    /// A host that compiles fast and runs slowly: for tests that load very many modules.
    ///
    /// # Errors
    /// As [`Host::new`].
    pub fn for_many_modules(limits: Limits) -> Result<Self, LoadError> {
        Self::with_opt_level(limits, None, OptLevel::None)
    }

    fn with_opt_level(
        limits: Limits,
        cache: Option<&Path>,
        level: OptLevel,
    ) -> Result<Self, LoadError> {
        let refused = |error: wasmtime::Error| LoadError::Module(format!("{error:#}"));
        let mut config = Config::new();
        config.epoch_interruption(true).cranelift_opt_level(level);
        if let Some(folder) = cache {
            let mut settings = CacheConfig::new();
            settings.with_directory(folder);
            config.cache(Some(Cache::new(settings).map_err(refused)?));
        }
        let engine = Engine::new(&config).map_err(refused)?;
        let linker = linker(&engine).map_err(refused)?;
        let ticker = Ticker::start(engine.clone()).map_err(|error| {
            LoadError::Module(format!("the policy clock cannot start: {error}"))
        })?;
        Ok(Self { engine, linker, ticker, limits })
    }

    /// The limits.
    #[must_use]
    pub const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Compiles a module and checks that this host answers all it asks for.
    ///
    /// # Errors
    /// As [`LoadError`] says.
    pub fn load(&self, wasm: &[u8]) -> Result<Module, LoadError> {
        let module = wasmtime::Module::from_binary(&self.engine, wasm)
            .map_err(|error| LoadError::Module(format!("{error:#}")))?;
        for import in module.imports() {
            let known = import.name() == "memory" || import.name().starts_with("opa_");
            if import.module() != "env" || !known {
                let name = format!("it imports {}.{}", import.module(), import.name());
                return Err(LoadError::Module(name));
            }
        }
        let mut loaded = Module {
            pages: self.pages(&module, wasm.len())?,
            module,
            callees: Arc::from(Vec::new()),
            entrypoints: BTreeMap::new(),
        };
        let mut probe = self.bare_instance(&loaded)?;
        check_abi(&mut probe)?;
        let builtins = self.name_table(&mut probe, "builtins")?;
        loaded.entrypoints = self.name_table(&mut probe, "entrypoints")?;
        let mut callees = Vec::new();
        let mut missing = Vec::new();
        for (name, id) in builtins {
            let id = usize::try_from(id).unwrap_or(usize::MAX);
            match builtins::named(&name) {
                Some(callee) if id < 4096 => {
                    if callees.len() <= id {
                        callees.resize(id + 1, None);
                    }
                    if let Some(slot) = callees.get_mut(id) {
                        *slot = Some(callee);
                    }
                }
                _ => missing.push(format!("`{name}`")),
            }
        }
        if !missing.is_empty() {
            return Err(LoadError::Builtins(missing));
        }
        loaded.callees = callees.into();
        Ok(loaded)
    }

    /// An instance, with `data` (JSON) as its data document.
    ///
    /// # Errors
    /// When the module or the data does not fit the limits.
    pub fn instantiate(&self, module: &Module, data: &[u8]) -> Result<Instance, LoadError> {
        let Probe { mut store, memory, instance } = self.bare_instance(module)?;
        let refused = |error: wasmtime::Error| LoadError::Module(format!("{error:#}"));
        store.set_epoch_deadline(self.load_ticks());
        let malloc =
            instance.get_typed_func::<u32, u32>(&mut store, "opa_malloc").map_err(refused)?;
        let parse = instance.get_typed_func(&mut store, "opa_value_parse").map_err(refused)?;
        let eval = instance.get_typed_func(&mut store, "opa_eval").map_err(refused)?;
        let heap =
            instance.get_typed_func::<(), u32>(&mut store, "opa_heap_ptr_get").map_err(refused)?;
        let mut constant = |text: &[u8]| -> Result<u32, wasmtime::Error> {
            let len = u32::try_from(text.len())?;
            let at = malloc.call(&mut store, len)?;
            memory.write(&mut store, usize::try_from(at)?, text)?;
            parse.call(&mut store, (at, len))
        };
        let yes = constant(b"true").map_err(refused)?;
        let no = constant(b"false").map_err(refused)?;
        let data = constant(data).map_err(|error| LoadError::Data(format!("{error:#}")))?;
        if data == 0 {
            return Err(LoadError::Data("it is not JSON".to_owned()));
        }
        let heap_base = heap.call(&mut store, ()).map_err(refused)?;
        store.data_mut().env = Some(Env { memory, yes, no });
        store.data_mut().exports = Some(Exports { malloc, parse });
        let initial = memory.data_size(&store) as u64;
        Ok(Instance { store, memory, eval, heap_base, data, initial })
    }

    fn bare_instance(&self, module: &Module) -> Result<Probe, LoadError> {
        let refused = |error: wasmtime::Error| LoadError::Module(format!("{error:#}"));
        let max = u32::try_from(self.limits.memory_bytes / PAGE).unwrap_or(u32::MAX);
        let state = State {
            env: None,
            exports: None,
            callees: Arc::clone(&module.callees),
            patterns: Patterns::default(),
        };
        let mut store = Store::new(&self.engine, state);
        self.ticker.touch();
        store.set_epoch_deadline(self.load_ticks());
        let memory =
            Memory::new(&mut store, MemoryType::new(module.pages, Some(max))).map_err(refused)?;
        let mut linker = self.linker.clone();
        linker.define(&store, "env", "memory", memory).map_err(refused)?;
        let instance = linker.instantiate(&mut store, &module.module).map_err(refused)?;
        Ok(Probe { store, memory, instance })
    }

    /// How much memory an instance starts with. What the module asks for does not count the
    /// constants that `opa` adds; they cannot be larger than the module.
    fn pages(&self, module: &wasmtime::Module, bytes: usize) -> Result<u32, LoadError> {
        let wanted = module.imports().find(|import| import.name() == "memory");
        let min = wanted
            .and_then(|import| import.ty().memory().map(MemoryType::minimum))
            .ok_or_else(|| LoadError::Module("it does not import its memory".to_owned()))?;
        let min = min.saturating_add(bytes as u64 / PAGE + 1);
        if min > self.limits.memory_bytes / PAGE {
            return Err(LoadError::Module("its memory exceeds the limit".to_owned()));
        }
        u32::try_from(min).map_err(|_| LoadError::Module("its memory exceeds the limit".to_owned()))
    }

    /// Loading may take far longer than an evaluation, but not for ever.
    fn load_ticks(&self) -> u64 {
        5_000
    }

    fn ticks(&self) -> u64 {
        // One more: the current tick has partly passed.
        u64::try_from(self.limits.budget.as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// A table of names that the module exports by a function without arguments.
    fn name_table(
        &self,
        probe: &mut Probe,
        export: &str,
    ) -> Result<BTreeMap<String, i32>, LoadError> {
        let refused = |error: wasmtime::Error| LoadError::Module(format!("{error:#}"));
        let table =
            probe.instance.get_typed_func::<(), u32>(&mut probe.store, export).map_err(refused)?;
        let at = table.call(&mut probe.store, ()).map_err(refused)?;
        let value = memory::value(probe.memory.data(&probe.store), at)
            .map(|value| value.to_json())
            .unwrap_or_default();
        serde_json::from_str::<HashMap<String, i32>>(&value)
            .map(|table| table.into_iter().collect())
            .map_err(|_| LoadError::Module(format!("its `{export}` is not a table of names")))
    }
}

/// An instance before it is ready to evaluate.
struct Probe {
    store: Store<State>,
    memory: Memory,
    instance: wasmtime::Instance,
}

fn check_abi(probe: &mut Probe) -> Result<(), LoadError> {
    let mut global = |name| {
        let global = probe.instance.get_global(&mut probe.store, name)?;
        global.get(&mut probe.store).i32()
    };
    match (global("opa_wasm_abi_version"), global("opa_wasm_abi_minor_version")) {
        (Some(1), Some(2 | 3)) => Ok(()),
        (Some(major), Some(minor)) => Err(LoadError::Abi(format!("{major}.{minor}"))),
        _ => Err(LoadError::Module("it does not say which ABI it speaks".to_owned())),
    }
}

// === impl Module ===

impl fmt::Debug for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Module").field("entrypoints", &self.entrypoints).finish_non_exhaustive()
    }
}

impl Module {
    /// The entry points' ids by name, such as `aegis/p0/verdict`.
    #[must_use]
    pub const fn entrypoints(&self) -> &BTreeMap<String, i32> {
        &self.entrypoints
    }
}

// === impl Instance ===

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instance").field("heap_base", &self.heap_base).finish_non_exhaustive()
    }
}

impl Instance {
    /// Evaluates an entry point over `input` (JSON) and hands the result's JSON to `read`. The
    /// result is `[{"result": …}]`, or `[]` where the entry point is undefined.
    ///
    /// # Errors
    /// As [`EvalError`] says. The instance must not be used again then.
    pub fn eval<T>(
        &mut self,
        host: &Host,
        entrypoint: i32,
        input: &[u8],
        read: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, EvalError> {
        if input.len() > host.limits.input_bytes {
            return Err(EvalError::InputTooLarge);
        }
        let len = u32::try_from(input.len()).map_err(|_| EvalError::InputTooLarge)?;
        let base = usize::try_from(self.heap_base).unwrap_or(usize::MAX);
        let end = base.saturating_add(input.len());
        let size = self.memory.data_size(&self.store);
        if end.saturating_add(16) > size {
            let pages = (end - size) as u64 / PAGE + 2;
            self.memory.grow(&mut self.store, pages).map_err(|_| EvalError::InputTooLarge)?;
        }
        self.memory
            .data_mut(&mut self.store)
            .get_mut(base..end)
            .ok_or(EvalError::InputTooLarge)?
            .copy_from_slice(input);
        let heap = (self.heap_base.saturating_add(len).saturating_add(7)) & !7;
        host.ticker.touch();
        self.store.set_epoch_deadline(host.ticks());
        let at = self
            .eval
            .call(&mut self.store, (0, entrypoint, self.data, self.heap_base, len, heap, 0))
            .map_err(|error| failure(&error))?;
        let data = self.memory.data(&self.store);
        let output = memory::c_string(data, at, host.limits.output_bytes)
            .ok_or(EvalError::OutputTooLarge)?;
        Ok(read(output))
    }

    /// Whether it may be used again: an instance that has grown large is replaced.
    #[must_use]
    pub fn is_small(&self, host: &Host) -> bool {
        self.memory.data_size(&self.store) as u64 <= self.initial + host.limits.keep_bytes
    }
}

fn failure(error: &wasmtime::Error) -> EvalError {
    if let Some(Abort(message)) = error.downcast_ref::<Abort>() {
        return EvalError::Abort(message.clone());
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::Interrupt) => EvalError::Deadline,
        Some(trap) => EvalError::Trap(trap.to_string()),
        None => EvalError::Trap(error.to_string()),
    }
}

// === the functions that a module imports ===

fn linker(engine: &Engine) -> Result<Linker<State>, wasmtime::Error> {
    let mut linker = Linker::new(engine);
    linker.func_wrap("env", "opa_abort", |mut caller: Caller<'_, State>, at: u32| {
        let message = message(&mut caller, at);
        Err::<(), _>(wasmtime::Error::from(Abort(message)))
    })?;
    // `print` is not among the builtins; whatever else the runtime prints is of no use here.
    linker.func_wrap("env", "opa_println", |_: Caller<'_, State>, _: u32| {})?;
    linker.func_wrap("env", "opa_builtin0", |c: Caller<'_, State>, id: u32, _: u32| {
        dispatch(c, id, &[])
    })?;
    linker.func_wrap("env", "opa_builtin1", |c: Caller<'_, State>, id: u32, _: u32, a: u32| {
        dispatch(c, id, &[a])
    })?;
    linker.func_wrap(
        "env",
        "opa_builtin2",
        |c: Caller<'_, State>, id: u32, _: u32, a: u32, b: u32| dispatch(c, id, &[a, b]),
    )?;
    linker.func_wrap(
        "env",
        "opa_builtin3",
        |c: Caller<'_, State>, id: u32, _: u32, a: u32, b: u32, d: u32| dispatch(c, id, &[a, b, d]),
    )?;
    linker.func_wrap(
        "env",
        "opa_builtin4",
        |c: Caller<'_, State>, id: u32, _: u32, a: u32, b: u32, d: u32, e: u32| {
            dispatch(c, id, &[a, b, d, e])
        },
    )?;
    Ok(linker)
}

fn message(caller: &mut Caller<'_, State>, at: u32) -> String {
    let memory = match caller.data().env.as_ref() {
        Some(env) => env.memory,
        None => match caller.get_export("memory") {
            Some(Extern::Memory(memory)) => memory,
            _ => return "before it was ready".to_owned(),
        },
    };
    let raw = memory::c_string(memory.data(caller.as_context()), at, 1024).unwrap_or_default();
    String::from_utf8_lossy(raw).into_owned()
}

fn dispatch(mut caller: Caller<'_, State>, id: u32, args: &[u32]) -> Result<u32, wasmtime::Error> {
    let callee = usize::try_from(id).ok().and_then(|id| caller.data().callees.get(id).copied());
    let (Some(Some(callee)), Some(env)) = (callee, caller.data().env) else {
        return Err(Abort("a builtin was called that was not declared".to_owned()).into());
    };
    match (callee, args) {
        (Callee::Predicate(kind), [pattern, subject]) => {
            let (data, state) = env.memory.data_and_store_mut(caller.as_context_mut());
            let texts = memory::text(data, *pattern).zip(memory::readable(data, *subject));
            let answer = texts.and_then(|(p, s)| state.patterns.test(kind, p, &s));
            Ok(match answer {
                Some(true) => env.yes,
                Some(false) => env.no,
                None => 0,
            })
        }
        (Callee::Predicate(_), _) => Ok(0),
        (Callee::Function(function), _) => {
            let data = env.memory.data(&caller);
            let values: Option<Vec<_>> = args.iter().map(|at| memory::value(data, *at)).collect();
            let values = values.ok_or_else(|| {
                Abort(
                    "an argument of a builtin is too large or holds text that is not UTF-8".into(),
                )
            })?;
            let Some(result) = function(&values) else { return Ok(0) };
            let Some(exports) = caller.data().exports.clone() else { return Ok(0) };
            let text = result.to_rego();
            let len = u32::try_from(text.len())?;
            let at = exports.malloc.call(&mut caller, len)?;
            env.memory.write(&mut caller, usize::try_from(at)?, text.as_bytes())?;
            exports.parse.call(&mut caller, (at, len))
        }
    }
}
