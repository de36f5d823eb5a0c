{{- /* How pods are injected, as the operator reads it. */}}
{{- define "aegis.injection" -}}
{{- with .Values.injection -}}
{{- dict
  "image" (include "aegis.image" (dict "image" $.Values.images.sidecar "root" $))
  "imagePullPolicy" $.Values.images.pullPolicy
  "args" .args
  "env" .env
  "uid" (.uid | int64)
  "outboundPort" (.outboundPort | int64)
  "inboundPort" (.inboundPort | int64)
  "healthPort" (.healthPort | int64)
  "redirect" .redirect
  "audience" .audience
  "resources" .resources
  | toJson -}}
{{- end -}}
{{- end }}
