//! Other engines over the same rules and the same projected document.
//!
//! Each is set up the way its documentation recommends for many decisions: policies parsed and
//! compiled ahead, contexts, names and functions made once. What is left in the loop is the
//! document (from JSON text, as it arrives), the evaluation and reading the verdict. Cedar and CEL
//! are also given the values ready-made, without any JSON: the most that a caller with typed facts
//! can spare them.

use std::{hint::black_box, sync::Arc};

use aegis_policy::Compiler;
use anyhow::{Context as _, Result, anyhow};
use serde_json::Value;

use crate::{Call, Decide};

const REGO: &str = r#"package peer

allow if input.tool in {"read_query", "write_query", "list_tables"}

deny if input.trust < 300

deny if input.rate > 100

deny if input.table in {"users", "secrets"}

verdict := "deny" if deny
verdict := "allow" if { allow; not deny }
"#;

const REGO_REGEX: &str = r#"
deny if regex.match(`(?i)\b(drop|truncate)\s+table\b`, input.query)
"#;

const REGEX: &str = r"(?i)\b(drop|truncate)\s+table\b";

/// Every peer that runs in this process.
pub(crate) fn all(
    compiler: &Compiler,
    regex: bool,
    call: &Arc<Call>,
) -> Result<Vec<(String, Decide)>> {
    let rego = if regex { format!("{REGO}{REGO_REGEX}") } else { REGO.to_owned() };
    let document = call.projected(regex);
    let list = [
        ("regorus RVM", regorus_rvm(&rego, &document)?),
        ("regorus interpreter", regorus_interpreter(&rego, &document)?),
        ("opa-wasm", opa_wasm(compiler, &rego, &document)?),
        ("cedar-policy", cedar(regex, &document)?),
        ("cedar-policy, no JSON", cedar_typed(regex, call)?),
        ("cel", cel(regex, &document)?),
        ("cel, no JSON", cel_typed(regex, call)?),
    ];
    Ok(list.into_iter().map(|(name, decide)| (name.to_owned(), decide)).collect())
}

fn regorus_engine(rego: &str) -> Result<regorus::Engine> {
    let mut engine = regorus::Engine::new();
    engine.set_strict_builtin_errors(false);
    engine.add_policy("peer.rego".into(), rego.into())?;
    Ok(engine)
}

fn allows(value: &regorus::Value) -> bool {
    value.as_string().is_ok_and(|verdict| verdict.as_ref() == "allow")
}

fn regorus_interpreter(rego: &str, document: &str) -> Result<Decide> {
    let mut engine = regorus_engine(rego)?;
    let document = document.to_owned();
    Ok(Box::new(move || {
        engine.set_input(regorus::Value::from_json_str(black_box(&document))?);
        Ok(allows(&engine.eval_rule("data.peer.verdict".into())?))
    }))
}

fn regorus_rvm(rego: &str, document: &str) -> Result<Decide> {
    use regorus::{languages::rego::compiler::Compiler, rvm::vm::RegoVM};
    let compiled = regorus_engine(rego)?.compile_with_entrypoint(&"data.peer.verdict".into())?;
    let program = Compiler::compile_from_policy(&compiled, &["data.peer.verdict"])
        .map_err(|error| anyhow!("{error:?}"))?;
    let mut vm = RegoVM::new();
    vm.load_program(program);
    let document = document.to_owned();
    Ok(Box::new(move || {
        vm.set_input(regorus::Value::from_json_str(black_box(&document))?);
        Ok(allows(&vm.execute().map_err(|error| anyhow!("{error:?}"))?))
    }))
}

fn opa_wasm(compiler: &Compiler, rego: &str, document: &str) -> Result<Decide> {
    use opa_wasm::{Runtime, wasmtime};
    let failed = |error: wasmtime::Error| anyhow!("{error:#}");
    let wasm = compiler.opa().build(&[rego.to_owned()], &["peer/verdict".to_owned()])?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let engine = wasmtime::Engine::new(&wasmtime::Config::new()).map_err(failed)?;
    let module = wasmtime::Module::new(&engine, wasm).map_err(failed)?;
    let mut store = wasmtime::Store::new(&engine, ());
    let policy = runtime.block_on(async {
        Runtime::new(&mut store, &module).await?.without_data(&mut store).await
    })?;
    let document = document.to_owned();
    Ok(Box::new(move || {
        let input: Value = serde_json::from_str(black_box(&document))?;
        let result: Value =
            runtime.block_on(policy.evaluate(&mut store, "peer/verdict", &input))?;
        Ok(result[0]["result"] == "allow")
    }))
}

/// Cedar has no regular expressions: its `like` stands for one, which is the easier task.
fn cedar_policies(regex: bool) -> Result<cedar_policy::PolicySet> {
    let mut text = String::from(
        r#"permit(principal, action, resource) when { ["read_query", "write_query", "list_tables"].contains(context.tool) };
forbid(principal, action, resource) when { context.trust < 300 };
forbid(principal, action, resource) when { context.rate > 100 };
forbid(principal, action, resource) when { ["users", "secrets"].contains(context.table) };"#,
    );
    if regex {
        text.push_str(
            r#"forbid(principal, action, resource) when { context.query like "*DROP TABLE*" };"#,
        );
    }
    Ok(text.parse()?)
}

fn cedar_loop(
    policies: cedar_policy::PolicySet,
    mut context: impl FnMut() -> Result<cedar_policy::Context> + 'static,
) -> Result<Decide> {
    use cedar_policy::{Authorizer, Decision, Entities, EntityUid, Request};
    let (authorizer, entities) = (Authorizer::new(), Entities::empty());
    let agent: EntityUid = r#"Agent::"buyer""#.parse()?;
    let action: EntityUid = r#"Action::"call""#.parse()?;
    let server: EntityUid = r#"Server::"sqlite""#.parse()?;
    Ok(Box::new(move || {
        let request =
            Request::new(agent.clone(), action.clone(), server.clone(), context()?, None)?;
        let response = authorizer.is_authorized(&request, &policies, &entities);
        Ok(response.decision() == Decision::Allow)
    }))
}

fn cedar(regex: bool, document: &str) -> Result<Decide> {
    let document = document.to_owned();
    cedar_loop(cedar_policies(regex)?, move || {
        Ok(cedar_policy::Context::from_json_str(black_box(&document), None)?)
    })
}

fn cedar_typed(regex: bool, call: &Arc<Call>) -> Result<Decide> {
    use cedar_policy::{Context, RestrictedExpression as Value};
    let call = Arc::clone(call);
    cedar_loop(cedar_policies(regex)?, move || {
        let call = black_box(&call);
        let mut pairs = vec![
            ("tool".to_owned(), Value::new_string("write_query".to_owned())),
            ("trust".to_owned(), Value::new_long(call.trust)),
            ("rate".to_owned(), Value::new_long(3)),
            ("table".to_owned(), Value::new_string(call.text("table")?.to_owned())),
        ];
        if regex {
            pairs.push(("query".to_owned(), Value::new_string(call.text("query")?.to_owned())));
        }
        Ok(Context::from_pairs(pairs)?)
    })
}

fn cel_program(regex: bool, root: &str) -> Result<cel::Program> {
    let mut text = format!(
        r#"{root}tool in ["read_query", "write_query", "list_tables"] && !({root}trust < 300) && !({root}rate > 100) && !({root}table in ["users", "secrets"])"#
    );
    if regex {
        text.push_str(&format!(" && !drops({root}query)"));
    }
    Ok(cel::Program::compile(&text)?)
}

/// The context with the standard library, which scopes of single decisions inherit from. A
/// regular expression is compiled once here, because CEL's own `matches` would do it each time.
fn cel_context() -> Result<cel::Context<'static, 'static>> {
    let mut context = cel::Context::default();
    let pattern = regex::Regex::new(REGEX)?;
    context
        .add_function("drops", move |text: Arc<String>| pattern.is_match(&text))
        .map_err(|error| anyhow!("{error}"))?;
    Ok(context)
}

fn cel(regex: bool, document: &str) -> Result<Decide> {
    let (program, context) = (cel_program(regex, "input.")?, cel_context()?);
    let document = document.to_owned();
    Ok(Box::new(move || {
        let mut scope = context.new_inner_scope();
        let input: Value = serde_json::from_str(black_box(&document))?;
        scope.add_variable("input", input).map_err(|error| anyhow!("{error}"))?;
        Ok(program.execute(&scope)? == cel::Value::Bool(true))
    }))
}

fn cel_typed(regex: bool, call: &Arc<Call>) -> Result<Decide> {
    let (program, context) = (cel_program(regex, "")?, cel_context()?);
    let call = Arc::clone(call);
    Ok(Box::new(move || {
        let call = black_box(&call);
        let mut scope = context.new_inner_scope();
        scope.add_variable_from_value("tool", "write_query");
        scope.add_variable_from_value("trust", call.trust);
        scope.add_variable_from_value("rate", 3_i64);
        scope.add_variable_from_value("table", call.text("table")?);
        if regex {
            scope.add_variable_from_value("query", call.text("query")?);
        }
        Ok(program.execute(&scope)? == cel::Value::Bool(true))
    }))
}

impl Call {
    /// An argument that is a string.
    fn text(&self, name: &str) -> Result<&str> {
        self.arguments[name].as_str().with_context(|| format!("the argument {name} is no string"))
    }
}
