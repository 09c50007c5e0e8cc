{{/* First part of all names. */}}
{{- define "enforcer.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* By which a component's pods are found. Takes (list . "component"). Never changes, or upgrades fail. */}}
{{- define "enforcer.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ $root.Chart.Name }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Labels of everything. Takes (list . "component"). */}}
{{- define "enforcer.labels" -}}
{{- $root := index . 0 -}}
{{ include "enforcer.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "enforcer.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "enforcer.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* koord-manager mutates pods itself. */}}
{{- define "enforcer.hasWebhook" -}}
{{- if and .Values.webhook.enabled (eq .Values.mode "standalone") (not .Values.shadow) -}}yes{{- end -}}
{{- end -}}

{{/*
"yes" where an object is absent, or this release's own. Objects that Koordinator uses too are not to be taken over from
whoever has installed them. Takes (list . apiVersion kind namespace name). `helm template` asks no cluster: all are absent.
*/}}
{{- define "enforcer.isFree" -}}
{{- $root := index . 0 -}}
{{- $there := lookup (index . 1) (index . 2) (index . 3) (index . 4) -}}
{{- if not $there -}}
yes
{{- else -}}
{{- $annotations := $there.metadata.annotations | default dict -}}
{{- if and (eq (get $annotations "meta.helm.sh/release-name") $root.Release.Name) (eq (get $annotations "meta.helm.sh/release-namespace") $root.Release.Namespace) -}}
yes
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Of containers that need nothing. */}}
{{- define "enforcer.unprivileged" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
seccompProfile: { type: RuntimeDefault }
{{- end -}}

{{/* Two of a kind on one node would go together. Takes (list . "component"). */}}
{{- define "enforcer.spread" -}}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "enforcer.selector" . | nindent 8 }}
{{- end -}}

{{/* For Prometheus without its operator. Takes (list . port scheme). */}}
{{- define "enforcer.scrape" -}}
{{- $root := index . 0 -}}
{{- if $root.Values.monitoring.annotations }}
prometheus.io/scrape: "true"
prometheus.io/port: {{ index . 1 | quote }}
prometheus.io/scheme: {{ index . 2 }}
prometheus.io/path: /metrics
{{- end }}
{{- end -}}

{{/* The agents' policy. */}}
{{- define "enforcer.policy" -}}
{{- $kubernetes := merge (dict "mode" .Values.mode "configNamespace" .Values.config.namespace) (deepCopy .Values.policy.kubernetes) -}}
{{- $policy := dict "kubernetes" $kubernetes "limits" .Values.policy.limits -}}
{{- with .Values.policy.groups }}{{- $_ := set $policy "groups" . }}{{- end -}}
{{- toYaml $policy -}}
{{- end -}}

{{/* What it takes to take batch resources off nodes: for the controller, and for the last act of an uninstall. */}}
{{- define "enforcer.controllerRules" -}}
# Which nodes have something of enforcer's.
- apiGroups: [""]
  resources: [nodes]
  verbs: [list]
# When their agents reported last.
- apiGroups: [slo.koordinator.sh]
  resources: [nodemetrics]
  verbs: [list]
# Take it off, in the agents' name.
- apiGroups: [""]
  resources: [nodes, nodes/status]
  verbs: [patch]
{{- end -}}

{{/* For how long nodes may be silent. */}}
{{- define "enforcer.configRules" -}}
- apiGroups: [""]
  resources: [configmaps]
  resourceNames: [slo-controller-config]
  verbs: [get]
{{- end -}}

{{/* The Secret with the webhook's certificate. */}}
{{- define "enforcer.tlsSecret" -}}
{{- if eq .Values.webhook.tls.mode "secret" -}}
{{- required "webhook.tls.secretName: the Secret with the certificate" .Values.webhook.tls.secretName -}}
{{- else -}}
{{- include "enforcer.fullname" . }}-webhook-tls
{{- end -}}
{{- end -}}
