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

{{- /* What the operator says to each sidecar about where things are: `name=value`. */}}
{{- define "aegis.addresses" -}}
{{- $in := printf "%s.svc" .Release.Namespace -}}
{{- dict
  "AEGIS_TRUST_DOMAIN" .Values.trustDomain
  "AEGIS_CA_ADDRESS" (printf "aegis-ca.%s:9442" $in)
  "AEGIS_OPERATOR_ADDRESS" (printf "aegis-operator.%s:9444" $in)
  "AEGIS_LEDGER_ADDRESS" (printf "aegis-ledger.%s:9445" $in)
  | toJson -}}
{{- end }}

{{- /* The values that a sidecar's environment must hold, as a list for CEL. */}}
{{- define "aegis.proxyValues" -}}
{{- $values := list -}}
{{- range $name, $value := dict "AEGIS_OUTBOUND_PORT" .Values.injection.outboundPort "AEGIS_INBOUND_PORT" .Values.injection.inboundPort "AEGIS_HEALTH_PORT" .Values.injection.healthPort -}}
{{- $values = append $values (printf "%s=%d" $name ($value | int64)) -}}
{{- end -}}
{{- range $name, $value := .Values.injection.env -}}
{{- $values = append $values (printf "%s=%s" $name $value) -}}
{{- end -}}
{{- $values | toJson -}}
{{- end }}

{{- /* And what the kubelet fills in. */}}
{{- define "aegis.proxyFields" -}}
{{- list "POD_NAME=metadata.name" "POD_NAMESPACE=metadata.namespace" "POD_UID=metadata.uid" "POD_SERVICE_ACCOUNT=spec.serviceAccountName" "AEGIS_NODE_ADDRESSES=status.hostIPs" | toJson -}}
{{- end }}

{{- /* Every name that may stand there; addresses must be those of this release. */}}
{{- define "aegis.proxyVariables" -}}
{{- $names := list "POD_NAME" "POD_NAMESPACE" "POD_UID" "POD_SERVICE_ACCOUNT" "AEGIS_NODE_ADDRESSES" "AEGIS_OUTBOUND_PORT" "AEGIS_INBOUND_PORT" "AEGIS_HEALTH_PORT" "AEGIS_MCP_PORTS" "AEGIS_A2A_PORTS" "AEGIS_PROBES" "AEGIS_OPERATOR_KEY" "AEGIS_CA_ROOTS" -}}
{{- concat $names (include "aegis.addresses" . | fromJson | keys) (keys .Values.injection.env) | uniq | sortAlpha | toJson -}}
{{- end }}
