//! One macro: a type whose JSON form is its text form.

/// Implements `Serialize`, `Deserialize` and `JsonSchema` through `Display` and `FromStr`, so that
/// a value that came from JSON has passed the same checks as one that came from a flag. Further
/// keywords of the schema, such as `"maxLength": 71`, may follow the description.
#[macro_export]
macro_rules! serde_text {
    ($type:ty, $description:literal $(, $keyword:literal: $value:expr)* $(,)?) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl schemars::JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({
                    "type": "string",
                    "description": $description
                    $(, $keyword: $value)*
                })
            }
        }
    };
}
