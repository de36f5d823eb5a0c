//! OpenTelemetry: what leaves over OTLP, and where to.
//!
//! Off, unless the standard environment variables name a collector. What is to leave waits in bounded
//! queues, and threads of their own send it: nobody else waits for a collector, and what finds its queue
//! full is dropped. Refused: protocols other than `http/protobuf`.

mod client;

use std::{env, time::Duration};

use opentelemetry::{
    InstrumentationScope, SpanId, TraceFlags, TraceId,
    logs::LoggerProvider as _,
    trace::{SpanContext, TraceState, TracerProvider as _},
};
use opentelemetry_otlp::{
    LogExporter, Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _,
};
use opentelemetry_sdk::{
    Resource,
    logs::{SdkLogger, SdkLoggerProvider},
    trace::{SdkTracer, SdkTracerProvider},
};

use client::Client;

/// Makes spans.
pub type Tracer = SdkTracer;
/// Makes log records.
pub type Logger = SdkLogger;

/// How long the last spans and records may take to leave at the end of the process.
const LAST: Duration = Duration::from_secs(3);

/// Why nothing is exported.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// Another encoding of OTLP.
    #[error(
        "{variable} is `{value}`, and Aegis speaks `http/protobuf`; set it so, or unset it, and name the collector's HTTP port, which is 4318 unless configured otherwise"
    )]
    Protocol {
        /// The environment variable.
        variable: &'static str,
        /// Its value.
        value: String,
    },
    /// Roots that cannot be used.
    #[error(
        "OTEL_EXPORTER_OTLP_CERTIFICATE names `{path}`, which holds no usable certificates: {why}"
    )]
    Roots {
        /// Where.
        path: String,
        /// Why.
        why: String,
    },
    /// What sends could not be made.
    #[error("OTLP cannot be sent: {0}")]
    Exporter(String),
}

/// What is exported by OTLP, each with its environment variables.
struct Signal {
    endpoint: &'static str,
    protocol: &'static str,
    exporter: &'static str,
}

const GENERAL_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const GENERAL_PROTOCOL: &str = "OTEL_EXPORTER_OTLP_PROTOCOL";
const TRACES: Signal = Signal {
    endpoint: "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    protocol: "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    exporter: "OTEL_TRACES_EXPORTER",
};
const LOGS: Signal = Signal {
    endpoint: "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT",
    protocol: "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL",
    exporter: "OTEL_LOGS_EXPORTER",
};

impl Signal {
    /// Whether it is exported, going by these variables. One that is empty is not set.
    ///
    /// # Errors
    /// When it is, by a protocol that is not spoken here.
    fn is_on(&self, var: impl Fn(&str) -> Option<String>) -> Result<bool, TelemetryError> {
        let set = |name: &str| var(name).filter(|value| !value.is_empty());
        let disabled =
            set("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let exporter = set(self.exporter);
        let off = exporter.as_deref().is_some_and(|value| value != "otlp");
        let named = set(self.endpoint).or_else(|| set(GENERAL_ENDPOINT)).is_some();
        if disabled || off || !(named || exporter.is_some()) {
            return Ok(false);
        }
        let protocol = [self.protocol, GENERAL_PROTOCOL]
            .into_iter()
            .find_map(|variable| set(variable).map(|value| (variable, value)));
        match protocol {
            Some((variable, value)) if value != "http/protobuf" => {
                Err(TelemetryError::Protocol { variable, value })
            }
            _ => Ok(true),
        }
    }
}

/// What is exported. Nothing, unless the environment says otherwise.
#[derive(Debug, Default)]
pub struct Telemetry {
    spans: Option<SdkTracerProvider>,
    records: Option<SdkLoggerProvider>,
}

impl Telemetry {
    /// Goes by the environment, for `service` unless that says otherwise. What it asks for and cannot be
    /// had is logged and left out: enforcement does not depend on telemetry.
    #[must_use]
    pub fn from_env(service: &'static str) -> Self {
        Self::configured(service).unwrap_or_else(|error| {
            tracing::error!("no telemetry is exported: {error}");
            Self::default()
        })
    }

    fn configured(service: &'static str) -> Result<Self, TelemetryError> {
        let var = |name: &str| env::var(name).ok();
        let mut telemetry = Self::default();
        if TRACES.is_on(var)? {
            let exporter = SpanExporter::builder()
                .with_http()
                .with_protocol(Protocol::HttpBinary)
                .with_http_client(Client::new()?)
                .build()
                .map_err(|error| TelemetryError::Exporter(error.to_string()))?;
            let provider = SdkTracerProvider::builder()
                .with_resource(resource(service))
                .with_batch_exporter(exporter);
            telemetry.spans = Some(provider.build());
        }
        if LOGS.is_on(var)? {
            let exporter = LogExporter::builder()
                .with_http()
                .with_protocol(Protocol::HttpBinary)
                .with_http_client(Client::new()?)
                .build()
                .map_err(|error| TelemetryError::Exporter(error.to_string()))?;
            let provider = SdkLoggerProvider::builder()
                .with_resource(resource(service))
                .with_batch_exporter(exporter);
            telemetry.records = Some(provider.build());
        }
        Ok(telemetry)
    }

    /// Makes spans, if they are exported.
    #[must_use]
    pub fn tracer(&self) -> Option<Tracer> {
        self.spans.as_ref().map(|provider| provider.tracer_with_scope(scope()))
    }

    /// Makes log records, if they are exported.
    #[must_use]
    pub fn logger(&self) -> Option<Logger> {
        self.records.as_ref().map(|provider| provider.logger_with_scope(scope()))
    }

    /// Sends what is left, for a few seconds at most.
    pub async fn end(self) {
        let sent = tokio::task::spawn_blocking(move || {
            let spans = self.spans.map(|provider| provider.shutdown_with_timeout(LAST));
            let records = self.records.map(|provider| provider.shutdown_with_timeout(LAST));
            [spans, records].into_iter().flatten().find_map(Result::err)
        });
        if let Ok(Some(error)) = sent.await {
            tracing::warn!(%error, "the last telemetry did not leave");
        }
    }
}

fn scope() -> InstrumentationScope {
    InstrumentationScope::builder("aegis").with_version(env!("CARGO_PKG_VERSION")).build()
}

/// Who speaks: `service`, unless the environment names another.
fn resource(service: &'static str) -> Resource {
    let read = Resource::builder().build();
    let name = read.get(&"service.name".into()).map(|name| name.to_string()).unwrap_or_default();
    let version = opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let resource = Resource::builder_empty().with_attribute(version).with_attributes(
        read.iter().map(|(key, value)| opentelemetry::KeyValue::new(key.clone(), value.clone())),
    );
    match name.as_str() {
        unnamed if unnamed.is_empty() || unnamed.starts_with("unknown_service") => {
            resource.with_service_name(service).build()
        }
        _ => resource.build(),
    }
}

/// What W3C Trace Context says in `traceparent`, with the `tracestate` beside it; `None` unless it is
/// well-formed.
#[must_use]
pub fn remote_context(traceparent: &str, tracestate: Option<&str>) -> Option<SpanContext> {
    let mut parts = traceparent.split('-');
    let (version, trace, span, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    // Later versions may have more to say; version 0 has not.
    let whole = version != "00" || parts.next().is_none();
    let shaped = hex(version, 2) && hex(trace, 32) && hex(span, 16) && hex(flags, 2);
    if !(whole && shaped && version != "ff") {
        return None;
    }
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED;
    let state = tracestate.and_then(|text| text.parse::<TraceState>().ok()).unwrap_or_default();
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let context = SpanContext::new(trace, span, flags, true, state);
    context.is_valid().then_some(context)
}

/// The `traceparent` of a span.
#[must_use]
pub fn traceparent(context: &SpanContext) -> String {
    let flags = (context.trace_flags() & TraceFlags::SAMPLED).to_u8();
    format!("00-{}-{}-{flags:02x}", context.trace_id(), context.span_id())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_on(vars: &[(&str, &str)]) -> Result<bool, TelemetryError> {
        let found = |name: &str| {
            vars.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        TRACES.is_on(found)
    }

    #[test]
    fn nothing_leaves_unless_a_collector_is_named() {
        assert!(!is_on(&[]).unwrap());
        assert!(!is_on(&[("OTEL_SERVICE_NAME", "x")]).unwrap());
        assert!(!is_on(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]).unwrap());
        let named = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318");
        assert!(is_on(&[named]).unwrap());
        assert!(is_on(&[("OTEL_TRACES_EXPORTER", "otlp")]).unwrap());
        assert!(is_on(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:1/x")]).unwrap());
        assert!(!is_on(&[named, ("OTEL_TRACES_EXPORTER", "none")]).unwrap());
        assert!(!is_on(&[named, ("OTEL_SDK_DISABLED", "True")]).unwrap());
        assert!(!is_on(&[("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://127.0.0.1:1")]).unwrap());
    }

    #[test]
    fn another_protocol_is_refused_by_name() {
        let named = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317");
        let refused = is_on(&[named, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]).unwrap_err();
        assert!(refused.to_string().contains("OTEL_EXPORTER_OTLP_PROTOCOL is `grpc`"));
        let own = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf");
        assert!(is_on(&[named, own, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]).unwrap());
    }

    #[test]
    fn a_context_is_taken_as_it_is_written_and_nothing_else_is_one() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let context = remote_context(text, Some("vendor=1")).unwrap();
        assert_eq!(traceparent(&context), text);
        assert!(context.is_remote() && context.is_sampled());
        assert_eq!(context.trace_state().header(), "vendor=1");
        for refused in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01",
        ] {
            assert!(remote_context(refused, None).is_none(), "{refused}");
        }
        assert!(remote_context(&format!("{}-later", text.replacen("00", "cc", 1)), None).is_some());
    }
}
